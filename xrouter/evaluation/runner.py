"""Run any policy on any fleet over many tasks: concurrent, scored, resumable."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

import pandas as pd
from tqdm import tqdm

from xrouter.episode import (
    Attempt,
    Completion,
    Decision,
    Episode,
    Task,
    TokenTrace,
    ToolCall,
    ToolResult,
    Turn,
)
from xrouter.orchestrator import Fleet, Limits, Orchestrator, Policy
from xrouter.provenance import write_atomic, write_json

Scorer = Callable[[Task, str], float]
T = TypeVar("T")


def evaluate(
    policy: Policy,
    fleet: Orchestrator | Fleet,
    tasks: Sequence[Task],
    *,
    pool: Iterable[str] | None = None,
    cost_weight: float = 0.0,
    concurrency: int = 128,
    seed: int = 0,
    progress: bool = False,
    out: str | Path | None = None,
    keep_traces: bool = False,
    score: Scorer | None = None,
) -> list[Episode]:
    """Run and score one episode per task; the result is in the order of ``tasks``.

    ``fleet`` may be a fleet (agent mode, default limits) or a configured orchestrator. With
    ``out``, finished episodes are appended to that JSONL file as they finish, and episodes
    already in it (same task, policy, world, mode, pool, λ and seed) are not run again; a last
    line torn by a crash is dropped. ``score`` defaults to :func:`xrouter.verifiers.score`.
    Works inside a running event loop (a notebook) too. Raises ValueError for repeated task ids,
    a damaged ``out`` file, or a policy that fails in every episode.
    """
    if len({t.id for t in tasks}) != len(tasks):
        raise ValueError("tasks: repeated ids; every task needs its own")
    if concurrency < 1:
        raise ValueError(f"concurrency={concurrency}; must be at least 1")
    run = _Runner(
        policy,
        fleet if isinstance(fleet, Orchestrator) else default_orchestrator(fleet),
        None if pool is None else tuple(dict.fromkeys(pool)),
        cost_weight,
        seed,
        score or _scorer(),
        keep_traces,
    )
    finished = {} if out is None else _resume(Path(out), run, tasks)
    waiting = [t for t in tasks if t.id not in finished]
    if prepare := getattr(policy, "prepare", None):
        prepare(waiting)
    bar = tqdm(
        total=len(tasks),
        initial=len(finished),
        desc=f"{policy.name} λ={cost_weight:g}",
        unit="ep",
        file=sys.stderr,
        disable=not progress,
    )
    with Journal(out) as journal, bar:
        done = run_blocking(_collect(run, waiting, concurrency, journal, bar))
    episodes = [(finished | done)[t.id] for t in tasks]
    _report_policy_errors(policy, episodes)
    return episodes


async def _collect(
    run: _Runner, tasks: Sequence[Task], workers: int, journal: Journal, bar: tqdm
) -> dict[str, Episode]:
    """Run ``workers`` episodes at a time; each is written down as it finishes."""
    source = iter(tasks)
    done: dict[str, Episode] = {}

    async def work() -> None:
        for task in source:
            episode = done[task.id] = await run(task)
            journal.write(episode)
            bar.update()

    jobs = [asyncio.ensure_future(work()) for _ in range(min(workers, len(tasks)))]
    try:
        await asyncio.gather(*jobs)
    finally:
        for job in jobs:
            job.cancel()
    return done


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where an event loop is already running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def default_orchestrator(fleet: Fleet) -> Orchestrator:
    """Agent mode. Simulated and recorded fleets answer at once, so clocks only cost time."""
    if fleet.world == "live":
        return Orchestrator(fleet)
    return Orchestrator(fleet, limits=Limits(call_timeout_s=None, episode_timeout_s=None))


def _scorer() -> Scorer:
    from xrouter.verifiers import score

    return score


@dataclass(frozen=True)
class _Runner:
    """Everything but the task: runs one episode and scores it."""

    policy: Policy
    orchestrator: Orchestrator
    pool: tuple[str, ...] | None
    cost_weight: float
    seed: int
    score: Scorer
    keep_traces: bool

    async def __call__(self, task: Task) -> Episode:
        episode = await self.orchestrator.run(
            task, self.policy, pool=self.pool, cost_weight=self.cost_weight, seed=self.seed
        )
        quality = 0.0 if episode.answer_source == "none" else self.score(task, episode.answer)
        turns = episode.turns if self.keep_traces else _without_traces(episode.turns)
        return replace(episode, quality=quality, turns=turns)


def _without_traces(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    if all(t.decision.trace is None for t in turns):
        return turns
    return tuple(replace(t, decision=replace(t.decision, trace=None)) for t in turns)


class Journal:
    """Appends episodes to a JSONL file, one ``write`` per line; without a path, does nothing."""

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Journal:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)
        return self

    def write(self, episode: Episode) -> None:
        if self._file is not None:
            line = json.dumps(episode.to_dict(), ensure_ascii=False)
            self._file.write(line.encode("utf-8", "surrogatepass") + b"\n")

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()


def _resume(path: Path, run: _Runner, tasks: Sequence[Task]) -> dict[str, Episode]:
    """Episodes of this very setting that are already in the file, by task id."""
    fleet, everything = run.orchestrator.fleet, tuple(run.orchestrator.fleet.catalog.models)
    setting = (run.policy.name, fleet.world, run.orchestrator.mode, run.cost_weight, run.seed)
    pools = {t.id: run.pool or tuple(dict.fromkeys(t.pool)) or everything for t in tasks}
    return {
        e.task_id: e
        for e in read_episodes(path, drop_torn_line=True)
        if pools.get(e.task_id) == e.pool
        and (e.policy, e.world, e.mode, e.cost_weight, e.seed) == setting
        and e.quality is not None
    }


def read_episodes(path: str | Path, *, drop_torn_line: bool = False) -> list[Episode]:
    """Read a JSONL file of episodes; a missing file holds none.

    A last line without its newline was torn by a crash: it is skipped, and cut off the file
    with ``drop_torn_line``. Raises ValueError naming the line for any other damage.
    """
    file = Path(path)
    if not file.is_file():
        return []
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data) and drop_torn_line:
        os.truncate(file, whole)
    episodes = []
    for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
        try:
            episodes.append(episode_from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file.name}: line {number} is not an episode ({type(error).__name__}: {error}); "
                "remove the line or the file"
            ) from None
    return episodes


def episode_from_dict(row: Mapping[str, Any]) -> Episode:
    """The episode that :meth:`Episode.to_dict` wrote."""
    data = dict(row)
    for derived in ("cost_usd", "router_cost_usd", "models_cost_usd"):
        data.pop(derived, None)
    data["pool"] = tuple(data["pool"])
    data["turns"] = tuple(_turn(t) for t in data["turns"])
    return Episode(**data)


def _turn(row: Mapping[str, Any]) -> Turn:
    decision = dict(row["decision"])
    decision["tool_calls"] = tuple(ToolCall(**c) for c in decision["tool_calls"])
    decision["parse_errors"] = tuple(decision["parse_errors"])
    if trace := decision["trace"]:
        decision["trace"] = TokenTrace(**{k: tuple(v) for k, v in trace.items()})
    results = tuple(
        ToolResult(
            ToolCall(**r["call"]),
            _completion(r["completion"]) if r["completion"] else None,
            r["error"],
        )
        for r in row["results"]
    )
    return Turn(row["index"], Decision(**decision), results, row["latency_s"])


def _completion(row: Mapping[str, Any]) -> Completion:
    attempts = tuple(Attempt(**attempt) for attempt in row["attempts"])
    return Completion(**{**row, "attempts": attempts, "choices": tuple(row["choices"])})


def _report_policy_errors(policy: Policy, episodes: Sequence[Episode]) -> None:
    """Warn of episodes in which the policy raised; refuse a result made of nothing else."""
    broken = [e for e in episodes if e.stop_reason == "policy_error"]
    if not broken:
        return
    message = (
        f"policy {policy.name!r} failed in {len(broken)} of {len(episodes)} episodes, first: "
        f"{broken[0].note}"
    )
    if len(broken) == len(episodes):
        raise ValueError(message)
    warnings.warn(message, stacklevel=3)


def to_frame(episodes: Sequence[Episode], tasks: Iterable[Task]) -> pd.DataFrame:
    """One row per episode, in order.

    Columns: task_id, source, task (the source without its world), domain, policy, world, mode,
    cost_weight, seed, quality, cost_usd, router_cost_usd, models_cost_usd, turns, calls, models
    (those called, comma-separated, in order), route (``a+b>c``: a and b in parallel, then c),
    answer_source, answer_model, stop_reason, errors, wall_s. Costs in USD per query.
    """
    by_id = {t.id: t for t in tasks}
    if lacking := [e.task_id for e in episodes if e.task_id not in by_id]:
        raise ValueError(f"tasks: {len(lacking)} episodes have no task, first {lacking[0]!r}")
    return pd.DataFrame([_row(e, by_id[e.task_id]) for e in episodes], columns=_COLUMNS)


_COLUMNS = (
    *("task_id", "source", "task", "domain", "policy", "world", "mode", "cost_weight", "seed"),
    *("quality", "cost_usd", "router_cost_usd", "models_cost_usd", "turns", "calls", "models"),
    *("route", "answer_source", "answer_model", "stop_reason", "errors", "wall_s"),
)


def _row(episode: Episode, task: Task) -> dict[str, Any]:
    called = [[c.model for c in t.completions] for t in episode.turns]
    names = [m for turn in called for m in turn]
    router, models = episode.router_cost_usd, episode.models_cost_usd
    return {
        "task_id": task.id,
        "source": task.source,
        "task": task.source.rpartition(":")[2] or task.domain,
        "domain": task.domain,
        "policy": episode.policy,
        "world": episode.world,
        "mode": episode.mode,
        "cost_weight": episode.cost_weight,
        "seed": episode.seed,
        "quality": episode.quality,
        "cost_usd": router + models,
        "router_cost_usd": router,
        "models_cost_usd": models,
        "turns": len(episode.turns),
        "calls": len(names),
        "models": ",".join(dict.fromkeys(names)),
        "route": ">".join("+".join(turn) for turn in called if turn),
        "answer_source": episode.answer_source,
        "answer_model": episode.answer_model,
        "stop_reason": episode.stop_reason,
        "errors": len(episode.errors),
        "wall_s": episode.wall_s,
    }


def save_frame(frame: pd.DataFrame, stem: str | Path, stamp: Mapping[str, Any]) -> list[Path]:
    """Write ``<stem>.parquet``, ``<stem>.csv`` and ``<stem>.provenance.json``; returns them."""
    base = Path(stem)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    paths = [base.with_name(base.name + end) for end in (".parquet", ".csv", ".provenance.json")]
    write_atomic(paths[0], buffer.getvalue())
    write_atomic(paths[1], frame.to_csv(index=False))
    write_json(paths[2], dict(stamp))
    return paths
