"""Intervals, tests, and the cost–quality measures of routing papers.

A :class:`Point` is one operating point: mean quality in [0, 1] and mean cost in USD per query.
Everything random takes a seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xrouter.policies.cascades import undominated

Floats = npt.NDArray[np.float64]
SAVING_TARGETS: Mapping[str, float] = {"at_100": 1.0, "at_98": 0.98, "at_95": 0.95}
_CHUNK = 250
_EPS = 1e-12


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided bootstrap interval."""

    estimate: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Point:
    """One operating point: accuracy in [0, 1], cost in USD per query."""

    accuracy: float
    usd: float
    label: str = ""


def resampled_means(columns: npt.ArrayLike, *, n_boot: int = 2000, seed: int = 0) -> Floats:
    """Bootstrap means of each column, all columns resampled by the same rows.

    ``columns`` has shape [n] or [n, k]; the result has shape [n_boot, k].
    """
    data = np.asarray(columns, np.float64)
    data = data[:, None] if data.ndim == 1 else data
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, n_boot, _CHUNK):
        index = rng.integers(0, len(data), (min(_CHUNK, n_boot - start), len(data)))
        parts.append(data[index].mean(axis=1))
    return np.concatenate(parts)


def bootstrap(
    columns: npt.ArrayLike,
    statistic: Callable[[Floats], Floats] | None = None,
    *,
    n_boot: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic of column means.

    ``statistic`` maps means [b, k] to values [b] (default: the mean of the first column), so a
    paired difference is ``lambda m: m[:, 0] - m[:, 1]``. Undefined resamples are left out.
    """
    data = np.asarray(columns, np.float64)
    data = data[:, None] if data.ndim == 1 else data
    if not len(data):
        raise ValueError("bootstrap: no rows; give at least one observation")
    apply = statistic or (lambda means: means[:, 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = float(apply(data.mean(axis=0, keepdims=True))[0])
        values = apply(resampled_means(data, n_boot=n_boot, seed=seed))
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(estimate, math.nan, math.nan)
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return Interval(estimate, float(low), float(high))


def paired_difference(a: npt.ArrayLike, b: npt.ArrayLike, **options: Any) -> Interval:
    """Interval of mean(a) − mean(b) over the same tasks, both [n]."""
    return bootstrap(_pair(a, b), lambda m: m[:, 0] - m[:, 1], **options)


def paired_saving(cost: npt.ArrayLike, reference: npt.ArrayLike, **options: Any) -> Interval:
    """Interval of 1 − mean(cost) / mean(reference) over the same tasks, both [n]."""
    return bootstrap(_pair(cost, reference), lambda m: 1.0 - m[:, 0] / m[:, 1], **options)


def _pair(a: npt.ArrayLike, b: npt.ArrayLike) -> Floats:
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape or left.ndim != 1:
        raise ValueError(f"paired arrays have shapes {left.shape} and {right.shape}; need [n] each")
    return np.stack([left, right], axis=1)


@dataclass(frozen=True)
class McNemar:
    """``only_first``/``only_second``: tasks only the first/second system got right."""

    only_first: int
    only_second: int
    p_value: float

    def to_dict(self) -> dict[str, float]:
        return {
            "only_first": self.only_first,
            "only_second": self.only_second,
            "p_value": self.p_value,
        }


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike) -> McNemar:
    """Exact two-sided McNemar test of two systems on the same tasks; right means quality 1."""
    pair = _pair(first, second) >= 1.0
    b = int((pair[:, 0] & ~pair[:, 1]).sum())
    c = int((~pair[:, 0] & pair[:, 1]).sum())
    return McNemar(b, c, min(1.0, 2 * _binomial_tail(min(b, c), b + c) / 2 ** (b + c)))


def _binomial_tail(k: int, n: int) -> int:
    """Number of subsets of at most ``k`` out of ``n`` things, exactly."""
    term = total = 1
    for i in range(k):
        term = term * (n - i) // (i + 1)
        total += term
    return total


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm–Bonferroni adjusted p values, by name."""
    order = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[str, float] = {}
    running = 0.0
    for i, name in enumerate(order):
        running = max(running, min(1.0, (len(order) - i) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def pareto_frontier(cost: npt.ArrayLike, quality: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Indices of the points that no other point beats on both axes, cheapest first.

    Of equal points the first is kept.
    """
    c, q = np.asarray(cost, np.float64), np.asarray(quality, np.float64)
    if c.shape != q.shape or c.ndim != 1:
        raise ValueError(f"cost has shape {c.shape}, quality {q.shape}; need [n] each")
    return np.array(undominated(c, q), np.int64)


def isotonic(values: npt.ArrayLike) -> Floats:
    """Closest non-decreasing sequence in least squares (pool adjacent violators)."""
    levels: list[float] = []
    sizes: list[int] = []
    for value in np.asarray(values, np.float64):
        levels.append(float(value))
        sizes.append(1)
        while len(levels) > 1 and levels[-2] > levels[-1]:
            size = sizes[-2] + sizes[-1]
            levels[-2:] = [(sizes[-2] * levels[-2] + sizes[-1] * levels[-1]) / size]
            sizes[-2:] = [size]
    return np.repeat(levels, sizes)


def cost_utility(accuracy: float, usd_per_query: float) -> float | None:
    """Accuracy per USD of 1,000 queries (the paper's cost utility); None where nothing is spent."""
    return None if usd_per_query <= 0 else accuracy / (1e3 * usd_per_query)


def cheapest_at(points: Iterable[Point], accuracy: float) -> Point | None:
    """The cheapest point that reaches ``accuracy``, or None."""
    good = [p for p in points if p.accuracy >= accuracy - _EPS]
    return min(good, key=lambda p: (p.usd, -p.accuracy)) if good else None


def best_within(points: Iterable[Point], usd: float) -> Point | None:
    """The most accurate point that costs at most ``usd`` per query, or None."""
    good = [p for p in points if p.usd <= usd * (1 + _EPS)]
    return max(good, key=lambda p: (p.accuracy, -p.usd)) if good else None


def cost_save(points: Iterable[Point], best_single: Point, fraction: float = 1.0) -> float | None:
    """CostSave: share of the best single model's cost that is saved at ``fraction`` of its
    accuracy; None where no point reaches that accuracy."""
    point = cheapest_at(points, fraction * best_single.accuracy)
    return None if point is None else saving(point, best_single)


def saving(point: Point, reference: Point) -> float:
    """1 − cost / reference cost; negative where the point is dearer."""
    return 1.0 - point.usd / reference.usd if reference.usd > 0 else math.nan


def perf_gain(points: Iterable[Point], best_single: Point) -> float:
    """PerfGain: relative gain of the most accurate point over the best single model."""
    return max(p.accuracy for p in points) / best_single.accuracy - 1.0


def frontier_gap(points: Sequence[Point], frontier: Sequence[Point]) -> float:
    """Mean accuracy by which ``points`` fall short of the frontier at equal or lower cost.

    0 means every point lies on the frontier; points cheaper than the whole frontier count 0.
    """
    gaps = []
    for point in points:
        rival = best_within(frontier, point.usd)
        gaps.append(0.0 if rival is None else max(0.0, rival.accuracy - point.accuracy))
    return float(np.mean(gaps))


def summarize(frame: pd.DataFrame, *, n_boot: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Headline numbers of one policy from the frame of :func:`xrouter.evaluation.runner.to_frame`.

    Costs are USD per 1,000 queries; ``routing_share`` is the share of episodes that called each
    model.
    """
    if frame.empty:
        raise ValueError("summarize: no episodes; evaluate at least one task")
    accuracy = bootstrap(frame["quality"], n_boot=n_boot, seed=seed)
    usd = bootstrap(1e3 * frame["cost_usd"], n_boot=n_boot, seed=seed)
    return {
        "n": len(frame),
        "accuracy": accuracy.estimate,
        "usd_per_1k": usd.estimate,
        "router_usd_per_1k": 1e3 * float(frame["router_cost_usd"].mean()),
        "cost_utility": cost_utility(accuracy.estimate, usd.estimate / 1e3),
        "turns_mean": float(frame["turns"].mean()),
        "calls_mean": float(frame["calls"].mean()),
        "routing_share": _routing_share(frame),
        "by_task": {str(k): _slice(part) for k, part in frame.groupby("task", sort=True)},
        "stop_reasons": frame["stop_reason"].value_counts(normalize=True).to_dict(),
        "answer_sources": frame["answer_source"].value_counts(normalize=True).to_dict(),
        "intervals": {"accuracy": accuracy.to_dict(), "usd_per_1k": usd.to_dict()},
    }


def _slice(frame: pd.DataFrame) -> dict[str, float]:
    return {
        "n": len(frame),
        "accuracy": float(frame["quality"].mean()),
        "usd_per_1k": 1e3 * float(frame["cost_usd"].mean()),
        "calls_mean": float(frame["calls"].mean()),
    }


def _routing_share(frame: pd.DataFrame) -> dict[str, float]:
    called = frame["models"].str.split(",").map(lambda names: {n for n in names if n})
    counts = called.explode().value_counts()
    return {str(model): float(n) / len(frame) for model, n in counts.items()}
