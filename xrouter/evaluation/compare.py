"""``xrouter eval compare``: a trained router against fitted baselines on real answers.

Nothing is tuned on the test recording. Baselines are fitted on one part of ``train``; the dial
(λ, ``cost_weight``) of every policy is chosen on the other, the validation part; the chosen
points are reported on ``test``. A policy is only a curve here: its episodes at each dial value.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from xrouter.data.splits import split_tasks
from xrouter.episode import Task
from xrouter.evaluation.runner import default_orchestrator, evaluate, to_frame
from xrouter.evaluation.runs import Run
from xrouter.evaluation.stats import (
    SAVING_TARGETS,
    Point,
    cost_save,
    frontier_gap,
    holm,
    isotonic,
    mcnemar,
    paired_difference,
    paired_saving,
    pareto_frontier,
    perf_gain,
    saving,
)
from xrouter.fleets.recorded import RecordedFleet
from xrouter.orchestrator import Fleet, Orchestrator, Policy
from xrouter.outcomes import OutcomeTable, recorded_table
from xrouter.policies.baselines import FITTED, PLAIN, make_policy
from xrouter.provenance import portable_path, provenance

Floats = npt.NDArray[np.float64]

BASELINES = (
    "cheapest",
    "price_cascade",
    "agreement",
    "dataset_best",
    "knn",
    "kmeans",
    "ridge",
    "matrix_factorization",
    "frugal",
    "fixed_chain",
    "fixed_chain_by_source",
)
ROUTER_DIAL = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8)
BASELINE_DIAL = (0.0, *(round(float(x), 5) for x in np.geomspace(0.005, 3.0, 24)))
UNITS = "accuracy and accuracy_delta: fraction of queries; cost_save: fraction of the best "
UNITS += "single model's cost; usd_per_1k: USD per 1,000 queries"


@dataclass(frozen=True)
class Split:
    """A recording cut for the comparison, with every model's outcomes."""

    fleet: RecordedFleet
    table: OutcomeTable

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.table.tasks


@dataclass(frozen=True)
class Reference:
    """The best single model: its outcomes on validation and test, [n] each."""

    model: str
    validation: tuple[Floats, Floats]
    test: tuple[Floats, Floats]


@dataclass(frozen=True)
class Position:
    """One position of a policy's dial: a policy and the λ it is asked for.

    ``shown`` names it in results: ``{"cost_weight": 0.1}``, or ``{"setting": "…"}`` for policies
    whose dial is a list of fixed settings.
    """

    policy: Policy
    cost_weight: float
    shown: Mapping[str, Any]


@dataclass(frozen=True)
class Curve:
    """Quality and cost in USD per query of one policy at each dial position: [dial, n] each."""

    dial: tuple[Position, ...]
    validation: tuple[Floats, Floats]
    test: tuple[Floats, Floats]

    def points(self, part: str) -> list[Point]:
        """Mean quality and cost at each dial position, on ``validation`` or ``test``."""
        quality, cost = getattr(self, part)
        means = zip(quality.mean(axis=1), cost.mean(axis=1), strict=True)
        return [Point(float(q), float(c)) for q, c in means]


def compare(
    router: str | Path | Policy,
    train: str | Path,
    test: str | Path,
    *,
    baselines: Iterable[str] = BASELINES,
    dial: Sequence[float] | None = None,
    models: Sequence[str] | None = None,
    validation: float = 0.3,
    margin: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Compare a router (run folder or policy) with baselines; returns a JSON-ready dict.

    ``validation`` is the share of ``train`` on which dials are chosen, unless the run itself
    says which queries of ``train`` it was not trained on: then those are used. ``margin`` asks
    for that many standard errors more than the target accuracy on validation, for every policy
    alike. ``models`` restricts the pool. Raises ValueError where the parts overlap.
    """
    run = Run(Path(router)) if isinstance(router, (str, Path)) else None
    fit, valid, tested, how = _open(train, test, models, run, validation, seed)
    reference = _reference(fit, valid, tested)
    names = _known(baselines)
    curves: dict[str, Curve] = {}
    with tqdm(desc="compare", unit="dial", file=sys.stderr, disable=not progress) as bar:
        for name in ("router", *names):
            bar.set_postfix_str(name)
            orchestrator = default_orchestrator
            if name == "router":
                orchestrator = run.orchestrator if run else default_orchestrator
                positions = _router_positions(router, run, dial)
            else:
                positions = _baseline_positions(name, fit.table)
            curves[name] = _curve(positions, (valid, tested), orchestrator, seed, bar.update)
    reports = {
        name: _report(curve, reference, margin=margin, seed=seed) for name, curve in curves.items()
    }
    _add_frontier(reports, curves, tested.table)
    _add_adjusted(reports)
    if "fixed_chain" in curves:
        reports["router"]["versus_fixed_chain"] = _head_to_head(
            curves["router"], curves["fixed_chain"], reports, seed
        )
    return {
        "world": "recorded",
        "units": UNITS,
        "policy": run.name if run else getattr(router, "name", "router"),
        "n": {"fit": len(fit.tasks), "validation": len(valid.tasks), "test": len(tested.tasks)},
        "validation_part": how,
        "margin_se": margin,
        "pool": list(tested.table.models),
        "best_single": _best_single(reference),
        "oracle": _oracle(tested.table),
        "router": reports.pop("router"),
        "baselines": reports,
        "seed": seed,
        **_stamp(run, train, test, fit, tested, seed),
    }


def sweep(
    positions: Iterable[Position],
    fleet: Orchestrator | Fleet,
    tasks: Sequence[Task],
    *,
    pool: Iterable[str] | None = None,
    seed: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> list[pd.DataFrame]:
    """Episodes at each dial position, one frame each (see ``runner.to_frame``)."""
    frames = []
    names = None if pool is None else tuple(pool)
    for position in positions:
        episodes = evaluate(
            position.policy, fleet, tasks, pool=names, cost_weight=position.cost_weight, seed=seed
        )
        frames.append(to_frame(episodes, tasks))
        on_step()
    return frames


def choose_at(curve: Curve, reference: Reference, fraction: float, *, margin: float = 0.0) -> int:
    """Index of the cheapest dial position that reaches ``fraction`` of the best single model's
    accuracy on validation; where none does, of the one that comes closest.

    Accuracy is first made monotone in cost (isotonic regression over the dial), so that a lucky
    cheap position is not taken for a good one; ``margin`` standard errors of the paired
    difference are added to the target.
    """
    quality, cost = curve.validation
    gap = quality - fraction * reference.validation[0][None, :]
    order = np.argsort(cost.mean(axis=1), kind="stable")
    smooth = np.empty(len(order))
    smooth[order] = isotonic(gap.mean(axis=1)[order])
    slack = smooth - margin * gap.std(axis=1, ddof=1) / math.sqrt(gap.shape[1])
    reached = [i for i in order if slack[i] >= -1e-12]
    return int(reached[0] if reached else slack.argmax())


def choose_at_cost(curve: Curve, reference: Reference) -> int | None:
    """Index of the most accurate dial value within the best single model's cost on validation,
    or None where all are dearer."""
    quality, cost = curve.validation[0].mean(axis=1), curve.validation[1].mean(axis=1)
    affordable = np.flatnonzero(cost <= reference.validation[1].mean())
    if not len(affordable):
        return None
    return int(affordable[np.lexsort((cost[affordable], -quality[affordable]))[0]])


def _open(
    train: str | Path,
    test: str | Path,
    models: Sequence[str] | None,
    run: Run | None,
    share: float,
    seed: int,
) -> tuple[Split, Split, Split, str]:
    if not 0.0 < share < 1.0:
        raise ValueError(f"validation={share}; must lie between 0 and 1")
    source, target = RecordedFleet(train), RecordedFleet(test)
    common = [m for m in models or source.model_ids if m in target.catalog]
    if not common:
        raise ValueError("--train and --test have no model in common")
    source = RecordedFleet(train, models=common).require_trainable()
    target = RecordedFleet(test, models=common)
    if shared := set(source.query_ids) & set(target.query_ids):
        raise ValueError(
            f"{len(shared)} queries are in both --train and --test, first {min(shared)!r}; "
            "a comparison needs held-out queries"
        )
    tasks = source.tasks()
    seen = run.seen(source) if run else None
    held_out = [t for t in tasks if seen and t.id not in seen]
    if held_out:
        how = f"the {len(held_out)} queries of --train that the run was not trained on"
        fitted = [t for t in tasks if seen and t.id in seen]
    else:
        parts = split_tasks(tasks, seed, {"fit": 1.0 - share, "validation": share})
        fitted, held_out = parts["fit"], parts["validation"]
        how = f"{share:.0%} of --train, split seed {seed}"
    made = [
        Split(fleet, recorded_table(fleet, part))
        for fleet, part in ((source, fitted), (source, held_out), (target, target.tasks()))
    ]
    return made[0], made[1], made[2], how


def _reference(fit: Split, valid: Split, tested: Split) -> Reference:
    """The single model that is best on all of ``train``."""
    weights = len(fit.tasks), len(valid.tasks)
    accuracy = np.average(
        [fit.table.quality.mean(axis=0), valid.table.quality.mean(axis=0)], axis=0, weights=weights
    )
    cost = np.average(
        [fit.table.cost_usd.mean(axis=0), valid.table.cost_usd.mean(axis=0)],
        axis=0,
        weights=weights,
    )
    best = int(np.lexsort((cost, -accuracy))[0])

    def outcome(table: OutcomeTable) -> tuple[Floats, Floats]:
        return table.quality[:, best], table.cost_usd[:, best]

    return Reference(fit.table.models[best], outcome(valid.table), outcome(tested.table))


def _known(baselines: Iterable[str]) -> list[str]:
    names = [n.replace("-", "_") for n in dict.fromkeys(baselines)]
    if unknown := [n for n in names if n not in FITTED and n not in PLAIN]:
        raise ValueError(f"baselines={unknown}; use some of {', '.join([*PLAIN, *FITTED])}")
    return names


def _router_positions(
    router: str | Path | Policy, run: Run | None, dial: Sequence[float] | None
) -> tuple[Position, ...]:
    if run is not None:
        policy = run.policy()
        values = tuple(dial or run.dial or ROUTER_DIAL)
    else:
        assert not isinstance(router, (str, Path))
        policy, values = router, tuple(dial or ROUTER_DIAL)
    return _lambdas(policy, values)


def _baseline_positions(name: str, fit: OutcomeTable) -> tuple[Position, ...]:
    """λ values; the fixed settings of its training frontier where it has them; or one position
    for a policy that has no dial."""
    policy = make_policy(name, fit, fit.reference_usd())
    if name in PLAIN:
        return (Position(policy, 0.0, {"setting": "default"}),)
    if name != "fixed_chain_by_source" and (frontier := getattr(policy, "frontier", None)):
        return tuple(Position(p, 0.0, {"setting": p.name}) for p in frontier())
    return _lambdas(policy, BASELINE_DIAL)


def _lambdas(policy: Policy, values: Iterable[float]) -> tuple[Position, ...]:
    return tuple(Position(policy, v, {"cost_weight": v}) for v in values)


def _curve(
    dial: tuple[Position, ...],
    splits: tuple[Split, Split],
    orchestrator: Callable[[Fleet], Orchestrator],
    seed: int,
    on_step: Callable[[], object],
) -> Curve:
    """Run every position on validation and test."""
    parts = []
    for split in splits:
        frames = sweep(
            dial,
            orchestrator(split.fleet),
            split.tasks,
            pool=split.table.models,
            seed=seed,
            on_step=on_step,
        )
        quality, cost = (
            np.stack([f[column].to_numpy(np.float64) for f in frames])
            for column in ("quality", "cost_usd")
        )
        parts.append((quality, cost))
    return Curve(dial, parts[0], parts[1])


def _report(curve: Curve, reference: Reference, *, margin: float, seed: int) -> dict[str, Any]:
    """Operating points on test (null where they miss), what was attempted, and the curve.

    ``hindsight`` is the CostSave of the best dial position for the test data itself: a bound
    that shows how much of a miss is the choice of the dial and how much the curve.
    """
    report: dict[str, Any] = {}
    attempts: dict[str, Any] = {}
    target = float(reference.test[0].mean())
    for name, fraction in SAVING_TARGETS.items():
        index = choose_at(curve, reference, fraction, margin=margin)
        attempts[name] = _operating_point(curve, index, reference, seed)
        met = attempts[name]["accuracy"] >= fraction * target - 1e-12
        report[name] = attempts[name] if met else None
    within = choose_at_cost(curve, reference)
    attempt = None if within is None else _operating_point(curve, within, reference, seed)
    attempts["at_equal_cost"] = attempt
    affordable = attempt and attempt["usd_per_1k"] <= 1e3 * reference.test[1].mean() + 1e-9
    report["at_equal_cost"] = attempt if affordable else None
    best = Point(target, float(reference.test[1].mean()))
    report["perf_gain"] = perf_gain(curve.points("test"), best)
    report["hindsight"] = {
        name: cost_save(curve.points("test"), best, fraction)
        for name, fraction in SAVING_TARGETS.items()
    }
    report["attempted"] = attempts
    report["curve"] = [
        {**position.shown, "validation": _shown(v), "test": _shown(t)}
        for position, v, t in zip(
            curve.dial, curve.points("validation"), curve.points("test"), strict=True
        )
    ]
    return report


def _operating_point(curve: Curve, index: int, reference: Reference, seed: int) -> dict[str, Any]:
    quality, cost = curve.test[0][index], curve.test[1][index]
    best_quality, best_cost = reference.test
    point = Point(float(quality.mean()), float(cost.mean()))
    delta = paired_difference(quality, best_quality, seed=seed)
    saved = paired_saving(cost, best_cost, seed=seed)
    return {
        **_shown(point),
        "cost_save": saving(point, Point(float(best_quality.mean()), float(best_cost.mean()))),
        "accuracy_delta": delta.estimate,
        **curve.dial[index].shown,
        "position": index,
        "intervals": {"accuracy_delta": delta.to_dict(), "cost_save": saved.to_dict()},
        "mcnemar": mcnemar(quality, best_quality).to_dict(),
    }


def _shown(point: Point) -> dict[str, float]:
    return {"accuracy": point.accuracy, "usd_per_1k": 1e3 * point.usd}


def _add_frontier(
    reports: dict[str, dict[str, Any]], curves: Mapping[str, Curve], table: OutcomeTable
) -> None:
    """Mean shortfall of each policy against the joint test frontier of everything compared."""
    points = [p for curve in curves.values() for p in curve.points("test")]
    singles = zip(table.quality.mean(axis=0), table.cost_usd.mean(axis=0), strict=True)
    points += [Point(float(q), float(c)) for q, c in singles]
    best = pareto_frontier([p.usd for p in points], [p.accuracy for p in points])
    frontier = [points[i] for i in best]
    for name, curve in curves.items():
        reports[name]["frontier_gap"] = frontier_gap(curve.points("test"), frontier)


def _add_adjusted(reports: dict[str, dict[str, Any]]) -> None:
    """Holm-adjusted McNemar p values over all policies, per target."""
    for target in (*SAVING_TARGETS, "at_equal_cost"):
        attempts = {n: r["attempted"][target] for n, r in reports.items()}
        raw = {n: a["mcnemar"]["p_value"] for n, a in attempts.items() if a}
        for name, value in holm(raw).items():
            attempts[name]["mcnemar"]["p_holm"] = value


def _head_to_head(
    router: Curve, rival: Curve, reports: Mapping[str, dict[str, Any]], seed: int
) -> dict[str, Any]:
    """Router minus best fixed chain at each policy's own operating point, paired over tasks."""
    found: dict[str, Any] = {}
    for target in (*SAVING_TARGETS, "at_equal_cost"):
        mine, theirs = (reports[n]["attempted"][target] for n in ("router", "fixed_chain"))
        if mine is None or theirs is None:
            found[target] = None
            continue
        i, j = mine["position"], theirs["position"]
        found[target] = {
            "accuracy_delta": paired_difference(
                router.test[0][i], rival.test[0][j], seed=seed
            ).to_dict(),
            "cost_save": paired_saving(router.test[1][i], rival.test[1][j], seed=seed).to_dict(),
            "mcnemar": mcnemar(router.test[0][i], rival.test[0][j]).to_dict(),
        }
    return found


def _best_single(reference: Reference) -> dict[str, Any]:
    quality, cost = reference.test
    return {
        "model": reference.model,
        **_shown(Point(float(quality.mean()), float(cost.mean()))),
        "chosen_on": "train",
        "validation": _shown(
            Point(float(reference.validation[0].mean()), float(reference.validation[1].mean()))
        ),
    }


def _oracle(table: OutcomeTable) -> dict[str, float]:
    rows, columns = np.arange(len(table.tasks)), table.oracle()
    return _shown(
        Point(
            float(table.quality[rows, columns].mean()),
            float(table.cost_usd[rows, columns].mean()),
        )
    )


def _stamp(
    run: Run | None, train: str | Path, test: str | Path, fit: Split, tested: Split, seed: int
) -> dict[str, Any]:
    data = {"train": fit.fleet.data_hash, "test": tested.fleet.data_hash}
    stamp = provenance(config=run.config if run else None, data=data, seed=seed)
    stamp["recordings"] = {
        "train": {"name": portable_path(train), "hash": data["train"]},
        "test": {"name": portable_path(test), "hash": data["test"]},
    }
    return {"commit": stamp["commit"], "provenance": stamp}
