"""Every policy of the simulated world side by side: a trained router over its dial, and the
baselines.

Baselines are fitted on the training split. Operating points are chosen on validation, numbers are
reported on test: nothing is tuned on what is reported. All numbers are of the simulated world; they
show that the pipeline works and are no evidence about real models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xrouter.episode import DOMAINS, Task
from xrouter.evaluation.compare import Curve, Position, Reference, choose_at
from xrouter.evaluation.runner import (
    default_orchestrator,
    evaluate,
    run_blocking,
    save_frame,
    to_frame,
)
from xrouter.evaluation.runs import Run
from xrouter.evaluation.stats import (
    SAVING_TARGETS,
    paired_difference,
    paired_saving,
    pareto_frontier,
    summarize,
)
from xrouter.orchestrator import Orchestrator, Policy
from xrouter.outcomes import OutcomeTable, collect_outcomes
from xrouter.policies.baselines import FITTED, MODEL_PREFIX, PLAIN, make_policy
from xrouter.provenance import (
    code_hash,
    content_hash,
    file_hash,
    portable_path,
    provenance,
    repo_root,
    write_atomic,
)
from xrouter.world import SIMULATED_SIZES, World, open_simulated

ROUTER, SINGLE, BASELINE, ORACLE = "router", "single model", "baseline", "oracle"
DIAL = (0.0, 0.03, 0.08, 0.2, 0.5)
POOL = "offload11"
BASELINES = (*PLAIN, *(name for name in FITTED if name != "best_single"), ORACLE)
SHIPPED = Path("checkpoints") / "router-cpu"
CORE = ("data", "fleets", "policies")
MARGIN_SE = 0.5
"""Operating points aim that many standard errors above the target on validation."""


@dataclass(frozen=True)
class Contestant:
    """One policy of the suite. ``dial`` holds the cost weights λ it is asked for; a policy that
    does not read λ has one position, λ = 0, shown as missing."""

    policy: Policy
    name: str
    kind: str
    dial: tuple[float, ...] = (0.0,)
    reads_dial: bool = False


@dataclass(frozen=True)
class Stage:
    """A world cut for the suite: the pool, the outcomes baselines are fitted on, and the tasks."""

    world: World
    pool: tuple[str, ...]
    fit: OutcomeTable
    validation: tuple[Task, ...]
    test: tuple[Task, ...]
    orchestrator: Orchestrator

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.validation + self.test

    @cached_property
    def reference_usd(self) -> float:
        """The unit of cost in the reward, in USD per query."""
        return self.fit.reference_usd()

    @cached_property
    def best_single(self) -> str:
        """The best single model of the training split."""
        return self.fit.models[self.fit.best_single()]

    @cached_property
    def outcomes(self) -> OutcomeTable:
        """Every model on the tasks that are measured: for the oracle."""
        return run_blocking(collect_outcomes(self.world.fleet, self.tasks, self.pool))


@dataclass(frozen=True)
class Measured:
    """Episode frames of one contestant, one per dial position, over validation and test tasks."""

    contestant: Contestant
    frames: tuple[pd.DataFrame, ...]


@dataclass(frozen=True)
class Suite:
    """``points``: one row per policy and cost weight, see :func:`evaluate_suite`. ``routing``: the
    share of a domain's episodes in which the router called a model (``none``: nobody)."""

    points: pd.DataFrame
    routing: pd.DataFrame
    stamp: Mapping[str, Any]


def evaluate_suite(
    router: str | Path | Policy | None = None,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    pool: str | None = None,
    dial: Sequence[float] | None = None,
    baselines: Iterable[str] = BASELINES,
    limit: int | None = None,
    out: str | Path | None = None,
    journal: str | Path | None = None,
    echo: Callable[[str], None] = lambda line: None,
) -> pd.DataFrame:
    """Measure a router (run or checkpoint folder, or a policy) and the baselines on the test split.

    ``seed`` and ``sizes`` describe the world, ``pool`` the models offered and ``dial`` the cost
    weights; what is not given is taken from the run's own config, else from this module's
    defaults. ``limit`` takes that many tasks of each split measured. With ``out``, a file stem,
    the frame is written as CSV, parquet and provenance JSON, and ``<out>_routing.csv`` beside it.
    ``journal`` is a folder for the router's episodes: a run that was cut off continues there.
    ``echo`` hears one line per policy.

    Columns, one row per policy and cost weight: world, policy, kind, cost_weight (missing for
    policies that do not read it), n, accuracy, usd_per_1k, each with ``_low`` and ``_high``
    (95 % bootstrap interval); router_usd_per_1k; cost_relative (cost in units of the reference, so
    that the reward at λ is ``accuracy − λ·cost_relative``); cost_utility (accuracy per USD of
    1,000 queries); turns_mean, calls_mean, direct_rate; accuracy_delta and cost_save against the
    best single model, paired over tasks, with intervals; at_100, at_98, at_95 (the position that
    validation chooses for this share of the best single model's accuracy) and met_100, met_98,
    met_95 (whether test accuracy reaches it); pareto (no other policy but the oracle is as good
    for less); ``accuracy/<domain>``; ``share/<model>`` (share of episodes that called it).
    Raises ValueError for unknown baselines, pools or sizes, FileNotFoundError for a missing run.
    """
    run = Run(Path(router)) if isinstance(router, (str, Path)) else None
    names = _known(baselines)
    stage = open_stage(run, seed=seed, sizes=sizes, pool=pool, limit=limit)
    weights = tuple(dial or (run.dial if run else ()) or DIAL)
    agent = run.policy() if run else router
    assert not isinstance(agent, (str, Path))
    measured = []
    for contestant in contestants(agent, stage, names, weights):
        folder = _journal_folder(journal, run, stage) if contestant.kind == ROUTER else None
        measured.append(_measure(contestant, stage, folder))
        echo(_line(measured[-1]))
    suite = Suite(
        _points(measured, stage, seed),
        _routing(measured, stage),
        _stamp(run, stage, weights, names, seed, limit),
    )
    if out is not None:
        save_frame(suite.points, out, suite.stamp)
        target = Path(out).with_name(Path(out).name + "_routing.csv")
        write_atomic(target, suite.routing.to_csv(index=False))
    return suite.points


def find_router(run: str, root: Path | None = None) -> Path:
    """The folder of a trained router: ``results/runs/<run>`` where it is complete, else the
    checkpoint that is shipped with the repository. Raises FileNotFoundError naming both."""
    base = root or repo_root()
    trained = base / "results" / "runs" / run
    for folder, marker in ((trained, "summary.json"), (base / SHIPPED, "router.json")):
        if (folder / marker).is_file() or (folder / "policy" / marker).is_file():
            return folder
    raise FileNotFoundError(
        f"no trained router: neither results/runs/{run} (complete) nor {SHIPPED.as_posix()} is "
        "here; run notebook 05 first"
    )


def open_stage(
    run: Run | None = None,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    pool: str | None = None,
    limit: int | None = None,
) -> Stage:
    """Open the simulated world that a run was trained in, or the one described."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; must be at least 1")
    config = run.config if run else {}
    trained = (config.get("data") or {}) if config.get("world") == "simulated" else {}
    own = {k: int(trained[k]) for k in SIMULATED_SIZES if trained.get(k)}
    world = open_simulated(seed=int(trained.get("seed", seed)), sizes=sizes or own or None)
    if lacking := sorted({"train", "validation", "test"} - set(world.splits)):
        raise ValueError(f"sizes: the suite also needs {', '.join(lacking)}")
    catalog = world.fleet.catalog
    ids = catalog.pool(pool or (config.get("pool") or {}).get("evaluate") or POOL)
    return Stage(
        world,
        ids,
        run_blocking(collect_outcomes(world.fleet, world.splits["train"], ids)),
        tuple(world.splits["validation"][:limit]),
        tuple(world.splits["test"][:limit]),
        run.orchestrator(world.fleet) if run else default_orchestrator(world.fleet),
    )


def contestants(
    router: Policy | None, stage: Stage, baselines: Iterable[str], dial: tuple[float, ...]
) -> Iterator[Contestant]:
    """The best single model first, then the others, the baselines, and the router."""
    others = (m for m in stage.pool if m != stage.best_single)
    for model in (stage.best_single, *others):
        yield Contestant(make_policy(MODEL_PREFIX + model), model, SINGLE)
    for name in baselines:
        if name == ORACLE:
            yield Contestant(make_policy(name, stage.outcomes), name, ORACLE)
            continue
        policy = make_policy(name, stage.fit, stage.reference_usd)
        reads = name in FITTED
        yield Contestant(policy, name, BASELINE, dial if reads else (0.0,), reads)
    if router is not None:
        yield Contestant(router, ROUTER, ROUTER, dial, reads_dial=True)


def savings(points: pd.DataFrame) -> pd.DataFrame:
    """CostSave of each policy at parity, 98 % and 95 % of the best single model's accuracy.

    One row per policy and target, from the rows that validation chose. ``shortfall`` is by how much
    test accuracy misses the target (0 where it is met); ``cost_save`` is missing where it does.
    Columns: policy, kind, target, cost_weight, accuracy, usd_per_1k, met, shortfall, cost_save,
    cost_save_low, cost_save_high.
    """
    columns = ["policy", "kind", "target", "cost_weight", "accuracy", "usd_per_1k", "met"]
    columns += ["shortfall", "cost_save", "cost_save_low", "cost_save_high"]
    parts = []
    for target, share in SAVING_TARGETS.items():
        chosen = points[points[target].astype(bool)]
        met = chosen[target.replace("at_", "met_")].astype(bool)
        goal = share * (chosen["accuracy"] - chosen["accuracy_delta"])
        short = (goal - chosen["accuracy"]).where(~met, 0.0)
        part = chosen.assign(target=target, met=met, shortfall=short)
        for column in ("cost_save", "cost_save_low", "cost_save_high"):
            part[column] = part[column].where(met)
        parts.append(part[columns])
    return pd.concat(parts, ignore_index=True)


def _known(baselines: Iterable[str]) -> tuple[str, ...]:
    names = tuple(n.replace("-", "_") for n in dict.fromkeys(baselines))
    if unknown := [n for n in names if n not in BASELINES]:
        raise ValueError(f"baselines={unknown}; use some of {', '.join(BASELINES)}")
    return names


def _measure(contestant: Contestant, stage: Stage, folder: Path | None) -> Measured:
    frames = []
    for weight in contestant.dial:
        episodes = evaluate(
            contestant.policy,
            stage.orchestrator,
            stage.tasks,
            pool=stage.pool,
            cost_weight=weight,
            out=None if folder is None else folder / f"{contestant.name}_{weight:g}.jsonl",
        )
        frames.append(to_frame(episodes, stage.tasks))
    return Measured(contestant, tuple(frames))


def _line(measured: Measured) -> str:
    shown = []
    for weight, frame in zip(measured.contestant.dial, measured.frames, strict=True):
        where = f"λ={weight:g}: " if measured.contestant.reads_dial else ""
        shown.append(f"{where}{frame['quality'].mean():.3f} ${1e3 * frame['cost_usd'].mean():.2f}")
    return f"{measured.contestant.name}: {', '.join(shown)}"


def _journal_folder(journal: str | Path | None, run: Run | None, stage: Stage) -> Path | None:
    """A folder of its own for each state of weights, code and world: episodes never mix."""
    if journal is None or run is None:
        return None
    key = [_weights_hash(run), code_hash(CORE), stage.world.data_hash, stage.pool]
    return Path(journal) / content_hash(key)


def _weights_hash(run: Run) -> str:
    from xrouter.policies.local import checkpoint_folder

    folder = checkpoint_folder(run.folder)
    return file_hash(p for p in sorted(folder.iterdir()) if p.is_file())


# From episodes to rows


def _points(measured: Sequence[Measured], stage: Stage, seed: int) -> pd.DataFrame:
    cut = len(stage.validation)
    reference = _reference(measured[0], stage)
    rows = []
    for one in measured:
        chosen = _choices(one, stage, reference)
        for position, frame in enumerate(one.frames):
            test = frame.iloc[cut:].reset_index(drop=True)
            row = _row(one.contestant, position, test, stage, reference, seed)
            flags = {target: chosen[target] == position for target in SAVING_TARGETS}
            rows.append({**row, **flags, **_breakdown(test, stage.pool)})
    points = pd.DataFrame(rows)
    points.insert(list(points.columns).index("at_95") + 1, "pareto", _undominated(points))
    return points


def _reference(best: Measured, stage: Stage) -> Reference:
    validation, test = _halves(best.frames[0], stage)
    return Reference(best.contestant.name, validation, test)


def _halves(frame: pd.DataFrame, stage: Stage) -> tuple[Any, Any]:
    """(quality, cost in USD) on validation and on test, arrays [n] each."""
    quality, cost = (frame[c].to_numpy(np.float64) for c in ("quality", "cost_usd"))
    cut = len(stage.validation)
    return (quality[:cut], cost[:cut]), (quality[cut:], cost[cut:])


def _choices(measured: Measured, stage: Stage, reference: Reference) -> dict[str, int]:
    """The dial position that validation chooses for each target."""
    contestant = measured.contestant
    halves = [_halves(frame, stage) for frame in measured.frames]
    parts = [
        (np.stack([h[part][0] for h in halves]), np.stack([h[part][1] for h in halves]))
        for part in (0, 1)
    ]
    dial = tuple(Position(contestant.policy, w, {"cost_weight": w}) for w in contestant.dial)
    curve = Curve(dial, parts[0], parts[1])
    return {
        target: choose_at(curve, reference, fraction, margin=MARGIN_SE)
        for target, fraction in SAVING_TARGETS.items()
    }


def _row(
    contestant: Contestant,
    position: int,
    frame: pd.DataFrame,
    stage: Stage,
    reference: Reference,
    seed: int,
) -> dict[str, Any]:
    found = summarize(frame, seed=seed)
    delta = paired_difference(frame["quality"], reference.test[0], seed=seed)
    saved = paired_saving(frame["cost_usd"], reference.test[1], seed=seed)
    goal = float(reference.test[0].mean())
    row = {
        "world": stage.world.kind,
        "policy": contestant.name,
        "kind": contestant.kind,
        "cost_weight": contestant.dial[position] if contestant.reads_dial else math.nan,
        "n": found["n"],
    }
    for name in ("accuracy", "usd_per_1k"):
        row |= _bounds(name, found["intervals"][name])
    row |= {name: found[name] for name in ("router_usd_per_1k", "cost_utility")}
    row["cost_relative"] = found["usd_per_1k"] / (1e3 * stage.reference_usd)
    row |= {name: found[name] for name in ("turns_mean", "calls_mean")}
    row["direct_rate"] = float((frame["answer_source"] == "direct").mean())
    row |= _bounds("accuracy_delta", delta.to_dict()) | _bounds("cost_save", saved.to_dict())
    return row | {
        target.replace("at_", "met_"): found["accuracy"] >= share * goal - 1e-12
        for target, share in SAVING_TARGETS.items()
    }


def _bounds(name: str, interval: Mapping[str, float]) -> dict[str, float]:
    return {
        name: interval["estimate"],
        f"{name}_low": interval["low"],
        f"{name}_high": interval["high"],
    }


def _breakdown(frame: pd.DataFrame, pool: Sequence[str]) -> dict[str, float]:
    by_domain = frame.groupby("domain")["quality"].mean()
    called = frame["models"].str.split(",")
    return {f"accuracy/{d}": float(by_domain.get(d, math.nan)) for d in DOMAINS} | {
        f"share/{m}": float(np.mean([m in names for names in called])) for m in pool
    }


def _undominated(points: pd.DataFrame) -> list[bool]:
    """Whether no deployable policy is as good for less; never true of the oracle."""
    open_to_all = np.flatnonzero(points["kind"] != ORACLE)
    inside = points.iloc[open_to_all]
    front = pareto_frontier(inside["usd_per_1k"], inside["accuracy"])
    return np.isin(np.arange(len(points)), open_to_all[front]).tolist()


def _routing(measured: Sequence[Measured], stage: Stage) -> pd.DataFrame:
    """Columns: world, policy, cost_weight, domain, model, share, n (test episodes)."""
    cut = len(stage.validation)
    columns = ["world", "policy", "cost_weight", "domain", "model", "share", "n"]
    rows = [
        row
        for one in measured
        if one.contestant.kind == ROUTER
        for weight, frame in zip(one.contestant.dial, one.frames, strict=True)
        for row in _routing_rows(one.contestant.name, weight, frame.iloc[cut:])
    ]
    return pd.DataFrame(rows, columns=columns)


def _routing_rows(name: str, weight: float, frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    called = frame["models"].str.split(",")
    models = sorted({m for names in called for m in names if m})
    for domain, rows in frame.groupby("domain"):
        own = called[rows.index]
        shares = {m: float(np.mean([m in names for names in own])) for m in models}
        shares["none"] = float((rows["calls"] == 0).mean())
        for model, share in shares.items():
            yield {
                "world": rows["world"].iloc[0],
                "policy": name,
                "cost_weight": weight,
                "domain": domain,
                "model": model,
                "share": share,
                "n": len(rows),
            }


def _stamp(
    run: Run | None,
    stage: Stage,
    dial: tuple[float, ...],
    baselines: Sequence[str],
    seed: int,
    limit: int | None,
) -> dict[str, Any]:
    setting = {
        "router": None if run is None else portable_path(run.folder),
        "weights_hash": None if run is None else _weights_hash(run),
        "pool": list(stage.pool),
        "dial": list(dial),
        "baselines": list(baselines),
        "max_turns": stage.orchestrator.limits.max_turns,
        "limit": limit,
        "tasks": {
            "train": len(stage.fit.tasks),
            "validation": len(stage.validation),
            "test": len(stage.test),
        },
        "small_talk": float(np.mean([t.domain == "chat" for t in stage.test])),
        "reference_usd": stage.reference_usd,
        "best_single": stage.best_single,
    }
    stamp = provenance(config=setting, data=stage.world.data_hash, seed=seed)
    return {"world": stage.world.kind, **setting, **stamp}
