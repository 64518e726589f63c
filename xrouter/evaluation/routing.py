"""``xrouter eval routing``: one policy in one world, beside the best single model and oracle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from xrouter.data.splits import split_tasks
from xrouter.episode import Task
from xrouter.evaluation.runner import (
    default_orchestrator,
    evaluate,
    run_blocking,
    save_frame,
    to_frame,
)
from xrouter.evaluation.runs import DEFAULT_COST_WEIGHT, Run
from xrouter.evaluation.stats import (
    SAVING_TARGETS,
    Point,
    cost_save,
    mcnemar,
    paired_difference,
    paired_saving,
    perf_gain,
    saving,
    summarize,
)
from xrouter.fleets.recorded import RecordedFleet
from xrouter.orchestrator import Fleet, Policy
from xrouter.outcomes import OutcomeTable, collect_outcomes, recorded_table
from xrouter.policies.baselines import FITTED, make_policy
from xrouter.provenance import portable_path, provenance


@dataclass(frozen=True)
class Arena:
    """A fleet, the tasks to measure on, and the outcomes that baselines may be fitted on."""

    fleet: Fleet
    tasks: Sequence[Task]
    evaluated_on: str
    data_hash: str
    fit: OutcomeTable | None = None
    fitted_on: str | None = None


def evaluate_routing(
    policy: str,
    *,
    world: str = "simulated",
    recorded: str | Path | None = None,
    fit: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    cost_weight: float | None = None,
    pool: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Measure a baseline (by name) or a trained router (by run folder); returns a JSON-ready dict.

    ``recorded`` is the recording to measure on, ``fit`` one to fit baselines on. Without
    ``fit``, baselines that need fitting are fitted on one half of ``recorded`` and measured on
    the other. ``limit`` takes a seeded sample. ``cost_weight`` is λ; the default is the run's
    own, or 0.1. ``out`` is a file stem for the episodes (JSONL, resumable) and their frame.
    Accuracies are fractions, costs USD per 1,000 queries. Raises ValueError or
    FileNotFoundError for anything that cannot be measured honestly.
    """
    run = Run(Path(policy)) if Path(policy).is_dir() else None
    if world == "recorded":
        arena = _recorded_arena(policy, run, recorded, fit, split, seed)
    elif world == "simulated":
        arena = _simulated_arena(policy, run, split, seed)
    else:
        raise ValueError(f"world={world!r}; use 'simulated' or 'recorded'")
    if limit is not None:
        arena = _sample(arena, limit, seed)
    models = _pool(arena.fleet, pool or _trained_pool(run))
    table = run_blocking(collect_outcomes(arena.fleet, arena.tasks, models, seed=seed))
    agent = run.policy() if run else _baseline(policy, arena, table)
    weight = cost_weight
    if weight is None:
        weight = run.cost_weight if run else DEFAULT_COST_WEIGHT
    make = run.orchestrator if run else default_orchestrator
    orchestrator = make(arena.fleet)
    episodes = evaluate(
        agent,
        orchestrator,
        arena.tasks,
        pool=models,
        cost_weight=weight,
        seed=seed,
        progress=progress,
        out=None if out is None else f"{out}.jsonl",
    )
    frame = to_frame(episodes, arena.tasks)
    result = {
        "world": arena.fleet.world,
        "policy": agent.name,
        **summarize(frame, seed=seed),
        **against_single(frame, table, seed=seed),
        "evaluated_on": arena.evaluated_on,
        "fitted_on": arena.fitted_on if _needs_fitting(policy) else None,
        "cost_weight": weight,
        "mode": orchestrator.mode,
        "max_turns": orchestrator.limits.max_turns,
        "pool": list(models),
        "seed": seed,
    }
    setting = {k: result[k] for k in ("policy", "cost_weight", "pool", "mode", "max_turns")}
    stamp = provenance(config=setting, data=arena.data_hash, seed=seed)
    if out is not None:
        save_frame(frame, out, stamp)
    return result | {"commit": stamp["commit"], "provenance": stamp}


def against_single(frame: pd.DataFrame, table: OutcomeTable, *, seed: int = 0) -> dict[str, Any]:
    """The policy beside the best single model of the same tasks, and the oracle.

    ``table`` holds the outcomes of exactly the frame's tasks, in the same order.
    """
    if [t.id for t in table.tasks] != frame["task_id"].tolist():
        raise ValueError("the outcome table and the frame are not about the same tasks")
    best = table.best_single()
    quality, cost = table.quality[:, best], table.cost_usd[:, best]
    reference = Point(float(quality.mean()), float(cost.mean()), table.models[best])
    point = Point(float(frame["quality"].mean()), float(frame["cost_usd"].mean()))
    delta = paired_difference(frame["quality"], quality, seed=seed)
    saved = paired_saving(frame["cost_usd"], cost, seed=seed)
    columns = table.oracle()
    rows = range(len(columns))
    intervals = summarize(frame, seed=seed)["intervals"]
    return {
        "best_single": {
            "model": reference.label,
            "accuracy": reference.accuracy,
            "usd_per_1k": 1e3 * reference.usd,
            "chosen_on": "the evaluated tasks",
        },
        "oracle": {
            "accuracy": float(table.quality[rows, columns].mean()),
            "usd_per_1k": 1e3 * float(table.cost_usd[rows, columns].mean()),
        },
        "cost_save": saving(point, reference),
        "cost_save_at": {
            name: cost_save([point], reference, share) for name, share in SAVING_TARGETS.items()
        },
        "accuracy_delta": delta.estimate,
        "perf_gain": perf_gain([point], reference),
        "mcnemar": mcnemar(frame["quality"], quality).to_dict(),
        "intervals": intervals | {"accuracy_delta": delta.to_dict(), "cost_save": saved.to_dict()},
        "single_models": [
            {
                "model": model,
                "accuracy": float(table.quality[:, j].mean()),
                "usd_per_1k": 1e3 * float(table.cost_usd[:, j].mean()),
            }
            for j, model in enumerate(table.models)
        ],
    }


def _recorded_arena(
    policy: str,
    run: Run | None,
    recorded: str | Path | None,
    fit: str | Path | None,
    split: str | None,
    seed: int,
) -> Arena:
    if recorded is None:
        raise ValueError("world 'recorded' needs a recording: --recorded DIR")
    fleet = RecordedFleet(recorded)
    tasks, name = fleet.tasks(), portable_path(recorded)
    parts = split_tasks(tasks, seed)
    if split is not None and split not in parts:
        raise ValueError(f"split={split!r}; a recording has {', '.join(parts)}")
    if run is not None:
        return _arena_for_run(run, fleet, tasks if split is None else parts[split], name, split)
    if not _needs_fitting(policy):
        chosen = tasks if split is None else parts[split]
        return Arena(fleet, chosen, f"{name}: {split or 'all'}", fleet.data_hash)
    if fit is not None:
        source = RecordedFleet(fit).require_trainable()
        table = recorded_table(source, source.tasks())
        chosen, shown = tasks if split is None else parts[split], f"{name}: {split or 'all'}"
        if shared := {t.id for t in table.tasks} & {t.id for t in chosen}:
            raise ValueError(
                f"{len(shared)} queries of --recorded are also in --fit; measure on queries that "
                "nothing was fitted on"
            )
        return Arena(fleet, chosen, shown, fleet.data_hash, table, f"{portable_path(fit)}: all")
    fleet.require_trainable()
    chosen_split = split or "test"
    rest = [t for key, part in parts.items() if key != chosen_split for t in part]
    return Arena(
        fleet,
        parts[chosen_split],
        f"{name}: {chosen_split} (held out, split seed {seed})",
        fleet.data_hash,
        recorded_table(fleet, rest),
        f"{name}: everything but {chosen_split} (split seed {seed})",
    )


def _arena_for_run(
    run: Run, fleet: RecordedFleet, tasks: Sequence[Task], name: str, split: str | None
) -> Arena:
    """Tasks that the router was not trained on."""
    seen = run.seen(fleet)
    kept = [t for t in tasks if t.id not in (seen or ())]
    if not kept:
        raise ValueError(
            f"{run.name} was trained on every query of {name}"
            f"{'' if split is None else ': ' + split}; measure it on another recording or split"
        )
    what = f"{name}: {split or 'all'}"
    if seen is None:
        what += " (the run does not say what it was trained on)"
    elif len(kept) < len(tasks):
        what += f" without the {len(tasks) - len(kept)} queries it was trained on"
    return Arena(fleet, kept, what, fleet.data_hash)


def _simulated_arena(policy: str, run: Run | None, split: str | None, seed: int) -> Arena:
    from xrouter.world import open_simulated

    trained = run.config.get("data") if run and run.config.get("world") == "simulated" else None
    if trained:
        sizes = {k: int(trained[k]) for k in ("train", "validation", "test") if trained.get(k)}
        opened = open_simulated(seed=int(trained.get("seed", 0)), sizes=sizes)
    else:
        opened = open_simulated(seed=seed)
    name = split or "test"
    if name not in opened.splits:
        raise ValueError(f"split={name!r}; the simulated world has {', '.join(opened.splits)}")
    arena = Arena(opened.fleet, opened.splits[name], f"simulated: {name}", opened.data_hash)
    if run is None and _needs_fitting(policy) and name != "train":
        return replace(arena, fit=opened.train_table, fitted_on="simulated: train")
    return arena


def _needs_fitting(policy: str) -> bool:
    return policy.replace("-", "_") in FITTED


def _baseline(name: str, arena: Arena, table: OutcomeTable) -> Policy:
    if not _needs_fitting(name):
        return make_policy(name, table)
    if arena.fit is None:
        raise ValueError(f"policy {name!r} must be fitted on other tasks than it is measured on")
    known = [m for m in arena.fit.models if m in table.models]
    if not known:
        raise ValueError(f"policy {name!r}: --fit and the pool have no model in common")
    return make_policy(name, arena.fit.select(known))


def _trained_pool(run: Run | None) -> str | None:
    return None if run is None else (run.config.get("pool") or {}).get("evaluate")


def _pool(fleet: Fleet, name: str | None) -> tuple[str, ...]:
    return tuple(fleet.catalog.models) if name is None else fleet.catalog.pool(name)


def _sample(arena: Arena, limit: int, seed: int) -> Arena:
    """A seeded random sample of the tasks, in their order."""
    if limit < 1:
        raise ValueError(f"limit={limit}; must be at least 1")

    def rank(task: Task) -> bytes:
        return hashlib.sha256(f"{seed}\x1f{task.id}".encode()).digest()

    kept = {t.id for t in sorted(arena.tasks, key=rank)[:limit]}
    tasks = [t for t in arena.tasks if t.id in kept]
    return replace(arena, tasks=tasks, evaluated_on=f"{arena.evaluated_on}, sample of {len(tasks)}")
