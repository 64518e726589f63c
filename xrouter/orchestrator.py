"""The only turn loop in the project: a task goes in, a finished episode comes out.

Training rolls it out, evaluation scores its result, serving returns it. Nothing that a policy,
a model or a clock does raises out of :meth:`Orchestrator.run`; cancellation is the exception,
and what was spent until then has been reported through ``on_cost``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

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
from xrouter.prompts import model_messages
from xrouter.tools import ModelCall, Selection, ToolError, resolve


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
    outcomes by it; the live fleet sends ``messages``."""

    task: Task
    model: str
    system_prompt: str | None = None
    temperature: float | None = None
    attempt: int = 0
    seed: int = 0

    @property
    def messages(self) -> list:
        return model_messages(self.task, self.system_prompt)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one episode. Times in seconds, money in USD; None means no bound."""

    max_turns: int = 3
    max_calls_per_turn: int = 8
    call_timeout_s: float | None = 120.0
    episode_timeout_s: float | None = 300.0
    budget_usd: float | None = None

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
    ) -> Episode:
        """Run one episode.

        ``pool`` overrides ``task.pool``; with neither, the whole fleet is offered. Raises
        ValueError for an empty pool or an unknown model, before anything is spent.
        """
        ids = tuple(pool) if pool is not None else (task.pool or tuple(self.fleet.catalog.models))
        if not ids:
            raise ValueError(f"task {task.id!r}: pool is empty; give at least one model")
        if unknown := [i for i in ids if i not in self.fleet.catalog]:
            raise ValueError(f"task {task.id!r}: pool names unknown models {unknown}")
        specs = self.fleet.catalog.select(dict.fromkeys(ids))
        timeout = self.limits.episode_timeout_s
        run = _Run(task, specs, seed, None if timeout is None else time.monotonic() + timeout)
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
                decision = await asyncio.wait_for(policy.decide(state), run.time_left())
            except TimeoutError:
                return _fall_back(run, "deadline")
            except Exception as error:  # a broken policy must not break the caller
                return _fall_back(run, "policy_error", f"{type(error).__name__}: {error}")
            self._charge("router", decision.cost_usd)
            results, selected = await self._execute(run, decision)
            turn = Turn(index, decision, tuple(results), time.monotonic() - started)
            run.turns.append(turn)
            state = replace(state, turns=tuple(run.turns))
            if end := self._ending(run, turn, selected):
                return end
        reason: StopReason = "simple" if self.mode == "simple" else "turns_exhausted"
        return _fall_back(run, reason)

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
        calls = _with_ids(decision.tool_calls, len(run.turns))
        limit = 1 if self.mode == "simple" else self.limits.max_calls_per_turn
        results: dict[int, ToolResult] = {}
        jobs: dict[int, asyncio.Task[Completion]] = {}
        answered = [c.model for c in run.completions if c.ok]
        attempts: dict[str, int] = {}
        for completion in run.completions:
            attempts[completion.model] = attempts.get(completion.model, 0) + 1
        reserved = self._spent(run) + decision.cost_usd
        selections: list[tuple[int, ToolCall]] = []
        try:
            for i, call in enumerate(calls):
                try:
                    if call.name == "select_response" and self.mode == "agent":
                        selections.append((i, call))
                        continue
                    if len(jobs) >= limit:
                        raise ToolError(f"at most {limit} call(s) per turn; this one was not made")
                    wanted = resolve(call, run.pool, answered)
                    if not isinstance(wanted, ModelCall):
                        raise ToolError("simple mode: call exactly one model")
                    reserved = self._reserve(run, wanted.model, reserved)
                except ToolError as error:
                    results[i] = ToolResult(call, error=str(error))
                    continue
                attempt = attempts.get(wanted.model, 0)
                attempts[wanted.model] = attempt + 1
                request = FleetRequest(
                    run.task,
                    wanted.model,
                    wanted.system_prompt,
                    wanted.temperature,
                    attempt,
                    run.seed,
                )
                jobs[i] = asyncio.ensure_future(self._call(run, request))
            for i, job in jobs.items():
                results[i] = ToolResult(calls[i], completion=await job)
        finally:
            for job in jobs.values():
                job.cancel()
        done = [r.completion for _, r in sorted(results.items()) if r.completion is not None]
        selected: Completion | None = None
        for i, call in selections:
            try:
                selected = _selected(call, run.pool, [*run.completions, *done]) or selected
                results[i] = ToolResult(call)
            except ToolError as error:
                results[i] = ToolResult(call, error=str(error))
        return [results[i] for i in sorted(results)], selected

    async def _call(self, run: _Run, request: FleetRequest) -> Completion:
        timeouts = [t for t in (self.limits.call_timeout_s, run.time_left()) if t is not None]
        started = time.monotonic()
        try:
            work = self.fleet.complete(request)
            done = await asyncio.wait_for(work, max(0.0, min(timeouts)) if timeouts else None)
        except TimeoutError:
            error = f"no answer within {min(timeouts):.0f} s"
        except Exception as failure:  # a failing model is a result, not a crash
            error = f"{type(failure).__name__}: {failure}"
        else:
            self._charge(request.model, done.cost_usd)
            return done
        return Completion(
            request.model,
            "",
            latency_s=time.monotonic() - started,
            finish_reason="error",
            error=error,
        )

    def _reserve(self, run: _Run, model: str, reserved: float) -> float:
        """Money set aside once this call is made; refuses one that would break the budget."""
        if self.limits.budget_usd is None:
            return reserved
        expected = self.fleet.catalog[model].typical_cost(len(run.task.query) // 4)
        if reserved + expected > self.limits.budget_usd:
            raise ToolError(
                f"budget: calling {model} would cost about ${expected:.4f}, "
                f"${max(0.0, self.limits.budget_usd - reserved):.4f} is left"
            )
        return reserved + expected

    def _spent(self, run: _Run) -> float:
        return sum(t.cost_usd for t in run.turns)

    def _overspent(self, run: _Run) -> bool:
        return self.limits.budget_usd is not None and self._spent(run) >= self.limits.budget_usd

    def _charge(self, who: str, usd: float) -> None:
        if self.on_cost is not None and usd:
            self.on_cost(who, usd)


def _with_ids(calls: Sequence[ToolCall], turn: int) -> list[ToolCall]:
    """Unique ids within the episode, where the policy gave none or repeated one."""
    seen: set[str] = set()
    out = []
    for i, call in enumerate(calls):
        ident = call.id if call.id and call.id not in seen else f"call_{turn}_{i}"
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
