"""The only turn loop in the project: a task goes in, a finished episode comes out.

Training rolls it out, evaluation scores its result, serving returns it. Nothing that a policy,
a model or a clock does raises out of :meth:`Orchestrator.run`; cancellation is the exception,
and what was spent until then has been reported through ``on_cost``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from xrouter.catalog import Catalog, ModelSpec
from xrouter.episode import (
    AnswerSource,
    Completion,
    Decision,
    Episode,
    Mode,
    State,
    StopReason,
    Task,
    ToolCall,
    ToolResult,
    Turn,
    World,
    best_so_far,
)
from xrouter.metering import lost_costs
from xrouter.prompts import model_messages
from xrouter.tools import SELECT_TOOL, ModelCall, Selection, ToolError, resolve

Delta = Mapping[str, Any]


class Policy(Protocol):
    """Who decides. ``decide`` is called once per turn with all that may be known."""

    name: str

    async def decide(self, state: State) -> Decision: ...


class Fleet(Protocol):
    """Who answers. ``attempt`` counts earlier calls of the same model in the episode.

    A fleet reports a failing model as ``Completion(error=…)`` or raises; either way the
    episode goes on.
    """

    world: World
    catalog: Catalog

    async def complete(self, request: FleetRequest) -> Completion: ...


@dataclass(frozen=True, slots=True)
class FleetRequest:
    """One call to one model. ``task`` is whole: the simulated and recorded fleets look up
    outcomes by it; the live fleet sends ``messages``.

    ``options`` are the client's own parameters in OpenAI terms (tools, stop, seed, …).
    ``on_delta`` is set where this answer is bound to be the reply: a fleet that can stream hands
    it each choice delta as it comes, in wire form. ``max_cost_usd`` is what the call may cost at
    most, all its attempts together. Fleets of fixed outcomes ignore all three.
    """

    task: Task
    model: str
    system_prompt: str | None = None
    temperature: float | None = None
    attempt: int = 0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    on_delta: Callable[[Delta], None] | None = None
    max_cost_usd: float | None = None

    @property
    def messages(self) -> list:
        return model_messages(self.task, self.system_prompt)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one episode. Times in seconds, money in USD; None means no bound.

    ``router_reserve_usd`` is kept back from ``budget_usd`` for the policy's next turn: the most
    that one decision can cost.
    """

    max_turns: int = 3
    max_calls_per_turn: int = 8
    call_timeout_s: float | None = 120.0
    episode_timeout_s: float | None = 300.0
    budget_usd: float | None = None
    router_reserve_usd: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_calls_per_turn"):
            if getattr(self, name) < 1:
                raise ValueError(f"limits.{name}={getattr(self, name)}; must be at least 1")
        for name in ("call_timeout_s", "episode_timeout_s", "budget_usd"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"limits.{name}={value}; must be positive, or null for no bound")


@dataclass(slots=True)
class _Run:
    """Mutable progress of one episode."""

    task: Task
    pool: tuple[ModelSpec, ...]
    seed: int
    deadline: float | None
    options: Mapping[str, Any] = field(default_factory=dict)
    on_delta: Callable[[str, Delta], None] | None = None
    started: float = field(default_factory=time.monotonic)
    turns: list[Turn] = field(default_factory=list)

    @property
    def completions(self) -> list[Completion]:
        return [c for t in self.turns for c in t.completions]

    def time_left(self) -> float | None:
        return None if self.deadline is None else self.deadline - time.monotonic()


@dataclass(frozen=True, slots=True)
class _End:
    answer: str
    source: AnswerSource
    model: str | None
    reason: StopReason
    note: str = ""


class Orchestrator:
    """Runs episodes of any policy over any fleet.

    ``on_cost(model_id, usd)`` hears of every cost the moment it is known (model id ``router``
    for the router's own tokens), so that a bill survives a client that hangs up.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        mode: Mode = "agent",
        limits: Limits | None = None,
        on_cost: Callable[[str, float], None] | None = None,
    ) -> None:
        if mode not in ("agent", "simple"):
            raise ValueError(f"mode={mode!r}; use 'agent' or 'simple'")
        self.fleet = fleet
        self.mode = mode
        self.limits = limits or Limits()
        self.on_cost = on_cost

    async def run(
        self,
        task: Task,
        policy: Policy,
        *,
        pool: Iterable[str] | None = None,
        cost_weight: float = 0.0,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        on_delta: Callable[[str, Delta], None] | None = None,
    ) -> Episode:
        """Run one episode.

        ``pool`` overrides ``task.pool``; with neither, the whole fleet is offered. ``options``
        are handed to the fleet. ``on_delta(model_id, delta)`` hears the tokens of an answer that
        is bound to be the reply, where the fleet streams; see :class:`FleetRequest`. Raises
        ValueError for an empty pool or an unknown model, before anything is spent.
        """
        ids = tuple(pool) if pool is not None else (task.pool or tuple(self.fleet.catalog.models))
        if not ids:
            raise ValueError(f"task {task.id!r}: pool is empty; give at least one model")
        if unknown := [i for i in ids if i not in self.fleet.catalog]:
            raise ValueError(f"task {task.id!r}: pool names unknown models {unknown}")
        specs = self.fleet.catalog.select(dict.fromkeys(ids))
        timeout = self.limits.episode_timeout_s
        deadline = None if timeout is None else time.monotonic() + timeout
        run = _Run(task, specs, seed, deadline, options or {}, on_delta)
        end = await self._loop(run, policy, cost_weight)
        return Episode(
            task_id=task.id,
            policy=policy.name,
            world=self.fleet.world,
            mode=self.mode,
            pool=tuple(s.id for s in specs),
            turns=tuple(run.turns),
            answer=end.answer,
            answer_source=end.source,
            answer_model=end.model,
            stop_reason=end.reason,
            cost_weight=cost_weight,
            seed=seed,
            wall_s=time.monotonic() - run.started,
            note=end.note,
        )

    async def _loop(self, run: _Run, policy: Policy, cost_weight: float) -> _End:
        max_turns = 1 if self.mode == "simple" else self.limits.max_turns
        state = State(run.task.public(), run.pool, self.mode, max_turns, (), cost_weight, run.seed)
        for index in range(max_turns):
            if (left := run.time_left()) is not None and left <= 0:
                return _fall_back(run, "deadline")
            if self._overspent(run):
                return _fall_back(run, "budget")
            started = time.monotonic()
            try:
                decision = await self._decide(run, policy, state)
            except Exception as error:  # a broken policy must not break the caller
                left = run.time_left()
                if isinstance(error, TimeoutError) and left is not None and left <= 0:
                    return _fall_back(run, "deadline")
                return _fall_back(run, "policy_error", f"{type(error).__name__}: {error}")
            self._charge("router", decision.cost_usd)
            results, selected = await self._execute(run, decision)
            turn = Turn(index, decision, tuple(results), time.monotonic() - started)
            run.turns.append(turn)
            state = replace(state, turns=tuple(run.turns))
            if end := self._ending(run, turn, selected):
                return end
        reason: StopReason = "simple" if self.mode == "simple" else "turns_exhausted"
        left = run.time_left()
        return _fall_back(run, "deadline" if left is not None and left <= 0 else reason)

    async def _decide(self, run: _Run, policy: Policy, state: State) -> Decision:
        """Ask the policy. What a decision that never returned has cost is charged, and kept as a
        turn without content."""
        with lost_costs() as lost:
            try:
                decision = await asyncio.wait_for(policy.decide(state), run.time_left())
            except BaseException:
                if lost:
                    self._charge("router", sum(lost))
                    run.turns.append(Turn(len(run.turns), Decision(cost_usd=sum(lost))))
                raise
        return replace(decision, cost_usd=decision.cost_usd + sum(lost)) if lost else decision

    def _ending(self, run: _Run, turn: Turn, selected: Completion | None) -> _End | None:
        """How the episode ends after this turn, or None to go on."""
        decision = turn.decision
        if self.mode == "simple":
            done = [c for c in turn.completions if c.ok]
            return _End(done[0].text, "simple", done[0].model, "simple") if done else None
        if selected is not None:
            return _End(selected.text, "select", selected.model, "selected")
        if turn.results or decision.parse_errors:
            return None
        if not decision.content:
            return _fall_back(run, "empty")
        if any(c.ok for c in run.completions):
            return _End(decision.content, "synthesis", None, "answered")
        return _End(decision.content, "direct", None, "answered")

    async def _execute(
        self, run: _Run, decision: Decision
    ) -> tuple[list[ToolResult], Completion | None]:
        """Carry out the tool calls of one turn, model calls in parallel, selections last."""
        taken = {r.call.id for t in run.turns for r in t.results}
        calls = _with_ids(decision.tool_calls, len(run.turns), taken)
        requests, results = self._plan(run, decision, calls)
        jobs: dict[int, asyncio.Task[Completion]] = {}
        try:
            for i, request in requests.items():
                jobs[i] = asyncio.ensure_future(self._call(run, request))
            for i, job in jobs.items():
                results[i] = ToolResult(calls[i], completion=await job)
        finally:
            if pending := [job for job in jobs.values() if not job.done()]:
                for job in pending:
                    job.cancel()
                await asyncio.gather(*pending, return_exceptions=True)  # they charge what they cost
        done = [r.completion for _, r in sorted(results.items()) if r.completion is not None]
        selected: Completion | None = None
        for i, call in enumerate(calls):
            if i in results:
                continue
            try:
                selected = _selected(call, run.pool, [*run.completions, *done]) or selected
                results[i] = ToolResult(call)
            except ToolError as error:
                results[i] = ToolResult(call, error=str(error))
        return [results[i] for i in sorted(results)], selected

    def _plan(
        self, run: _Run, decision: Decision, calls: Sequence[ToolCall]
    ) -> tuple[dict[int, FleetRequest], dict[int, ToolResult]]:
        """The model calls to make, and the refusals of the others, by position; selections are in
        neither."""
        limit = 1 if self.mode == "simple" else self.limits.max_calls_per_turn
        refused: dict[int, ToolResult] = {}
        planned: dict[int, tuple[FleetRequest, float]] = {}
        final = _final_model(decision, self.mode, run.pool)
        answered = [c.model for c in run.completions if c.ok]
        attempts = Counter(c.model for c in run.completions)
        spent = self._spent(run) + decision.cost_usd + self.limits.router_reserve_usd
        reserved = spent
        for i, call in enumerate(calls):
            if call.name == SELECT_TOOL and self.mode == "agent":
                continue
            try:
                if len(planned) >= limit:
                    raise ToolError(f"at most {limit} call(s) per turn; this one was not made")
                wanted = resolve(call, run.pool, answered)
                if not isinstance(wanted, ModelCall):
                    raise ToolError("simple mode: call exactly one model")
                expected = self._reserve(run, wanted.model, reserved)
            except ToolError as error:
                refused[i] = ToolResult(call, error=str(error))
                continue
            reserved += expected
            attempt = attempts[wanted.model]
            attempts[wanted.model] += 1
            request = FleetRequest(
                run.task,
                wanted.model,
                wanted.system_prompt,
                wanted.temperature,
                attempt,
                run.seed,
                run.options,
                _delta_sink(run, wanted.model) if wanted.model == final and not attempt else None,
            )
            planned[i] = request, expected
        return self._with_allowances(planned, spent), refused

    async def _call(self, run: _Run, request: FleetRequest) -> Completion:
        timeouts = [t for t in (self.limits.call_timeout_s, run.time_left()) if t is not None]
        timeout = max(0.0, min(timeouts)) if timeouts else None
        started = time.monotonic()
        with lost_costs() as lost:
            try:
                done = await asyncio.wait_for(self.fleet.complete(request), timeout)
            except Exception as failure:  # a failing model is a result, not a crash
                waited = time.monotonic() - started
                if isinstance(failure, TimeoutError) and timeout is not None and waited >= timeout:
                    error = f"no answer within {timeout:.3g} s"
                else:
                    error = f"{type(failure).__name__}: {failure}"
            except BaseException:
                self._charge(request.model, sum(lost))
                raise
            else:
                self._charge(request.model, done.cost_usd)
                return done
        self._charge(request.model, sum(lost))
        return Completion(
            request.model,
            "",
            cost_usd=sum(lost),
            latency_s=time.monotonic() - started,
            finish_reason="error",
            error=error,
        )

    def _with_allowances(
        self, planned: Mapping[int, tuple[FleetRequest, float]], spent: float
    ) -> dict[int, FleetRequest]:
        """Share what is left of the budget among the calls of a turn: each may cost what it is
        expected to, and an equal part of the rest."""
        if self.limits.budget_usd is None or not planned:
            return {i: request for i, (request, _) in planned.items()}
        rest = self.limits.budget_usd - spent - sum(usd for _, usd in planned.values())
        return {
            i: replace(request, max_cost_usd=usd + rest / len(planned))
            for i, (request, usd) in planned.items()
        }

    def _reserve(self, run: _Run, model: str, reserved: float) -> float:
        """USD this call is expected to cost; refuses one that would break the budget."""
        if self.limits.budget_usd is None:
            return 0.0
        expected = self.fleet.catalog[model].typical_cost(len(run.task.query) // 4)
        if reserved + expected > self.limits.budget_usd:
            raise ToolError(
                f"budget: calling {model} would cost about ${expected:.4f}, "
                f"${max(0.0, self.limits.budget_usd - reserved):.4f} is left"
            )
        return expected

    def _spent(self, run: _Run) -> float:
        return sum(t.cost_usd for t in run.turns)

    def _overspent(self, run: _Run) -> bool:
        if self.limits.budget_usd is None:
            return False
        return self._spent(run) + self.limits.router_reserve_usd >= self.limits.budget_usd

    def _charge(self, who: str, usd: float) -> None:
        if self.on_cost is not None and usd:
            self.on_cost(who, usd)


def _delta_sink(run: _Run, model: str) -> Callable[[Delta], None] | None:
    return None if run.on_delta is None else partial(run.on_delta, model)


def _final_model(decision: Decision, mode: Mode, pool: Sequence[ModelSpec]) -> str | None:
    """The model whose answer is bound to be the reply, known before it is called: the only call
    of simple mode, or a call that the same decision selects."""
    by_tool = {spec.tool_name: spec.id for spec in pool}
    calls = [by_tool[c.name] for c in decision.tool_calls if c.name in by_tool]
    if mode == "simple":
        return calls[0] if calls else None
    selects = [c for c in decision.tool_calls if c.name == SELECT_TOOL]
    if len(selects) != 1:
        return None
    name = str(selects[0].arguments.get("model_call_name"))
    model = by_tool.get(name, name)
    return model if calls.count(model) == 1 else None


def _with_ids(calls: Sequence[ToolCall], turn: int, taken: set[str]) -> list[ToolCall]:
    """Unique ids within the episode, where the policy gave none or repeated one; ``taken`` are
    those of earlier turns."""
    seen = set(taken)
    out = []
    for i, call in enumerate(calls):
        ident = call.id
        if not ident or ident in seen:
            ident = f"call_{turn}_{i}"
        while ident in seen:
            ident += "_"
        seen.add(ident)
        out.append(replace(call, id=ident))
    return out


def _selected(
    call: ToolCall, pool: Sequence[ModelSpec], completions: Sequence[Completion]
) -> Completion | None:
    wanted = resolve(call, pool, [c.model for c in completions if c.ok])
    if not isinstance(wanted, Selection):
        return None
    return [c for c in completions if c.ok and c.model == wanted.model][-1]


def _fall_back(run: _Run, reason: StopReason, note: str = "") -> _End:
    """End with the best answer so far, or with none."""
    best = best_so_far(run.completions)
    if best is None:
        return _End("", "none", None, reason, note)
    return _End(best.text, "fallback", best.model, reason, note)
