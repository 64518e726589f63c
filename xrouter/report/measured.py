"""Tables of our own results: training, the suite of the simulated world, recorded answers.

Every frame names its world in a column, or is made from one that does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from xrouter.report.tables import ROUTER
from xrouter.reward import RewardConfig, reward

if TYPE_CHECKING:
    from xrouter.outcomes import OutcomeTable

SIMULATED = Path("summary") / "simulated.csv"
SIMULATED_ROUTING = Path("summary") / "simulated_routing.csv"
RECORDED = Path("recorded") / "curves.csv"
TRAINING = Path("training")
TRAINING_RUNS = {"seed 0": "cpu-s0", "seed 1": "cpu-s1", "seed 2": "cpu-s2"}
ORACLE = "oracle"
NAMES = {
    ROUTER: "trained router",
    "price_cascade": "price cascade",
    "most_expensive": "dearest",
    "agreement": "agreement cascade",
    "dataset_best": "best per task source",
    "knn": "kNN",
    "kmeans": "k-means",
    "matrix_factorization": "matrix factorization",
    "frugal": "FrugalGPT cascade",
    "fixed_chain": "fixed chain",
    "fixed_chain_by_source": "fixed chain per source",
}


def training_files(file: str) -> tuple[Path, ...]:
    """``metrics.csv`` or ``validation.csv`` of each committed run, relative to ``results/``."""
    return tuple(TRAINING / run / file for run in TRAINING_RUNS.values())


def read_training(results: Path, file: str = "metrics.csv") -> dict[str, pd.DataFrame]:
    """That file of each committed run, by the run's label. Raises FileNotFoundError."""
    files = zip(TRAINING_RUNS, training_files(file), strict=True)
    return {label: pd.read_csv(results / path) for label, path in files}


def training_lift(runs: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Held-out reward after the last step against the warm start, per run and cost weight.

    ``runs`` maps a label to a ``validation.csv``. ``lift_low`` and ``lift_high`` are ±1.96
    standard errors of the difference, the two taken as independent (they are of the same tasks, so
    this is cautious). Columns: run, cost_weight, steps, warm_start, trained, lift, lift_low,
    lift_high, accuracy_before, accuracy_after, usd_before, usd_after (USD per 1,000).
    """
    rows = []
    for label, frame in runs.items():
        for weight, own in frame.sort_values("step").groupby("cost_weight"):
            first, last = own.iloc[0], own.iloc[-1]
            error = 1.96 * float((first["reward_sem"] ** 2 + last["reward_sem"] ** 2) ** 0.5)
            lift = float(last["reward"] - first["reward"])
            rows.append(
                {
                    "run": label,
                    "cost_weight": weight,
                    "steps": int(last["step"]),
                    "warm_start": first["reward"],
                    "trained": last["reward"],
                    "lift": lift,
                    "lift_low": lift - error,
                    "lift_high": lift + error,
                    "accuracy_before": first["accuracy"],
                    "accuracy_after": last["accuracy"],
                    "usd_before": first["usd_per_1k"],
                    "usd_after": last["usd_per_1k"],
                }
            )
    return pd.DataFrame(rows)


def rewards(points: pd.DataFrame, weights: Iterable[float]) -> pd.DataFrame:
    """Mean reward ``accuracy − λ·cost_relative`` of each policy of a suite frame at each λ.

    A policy with a dial is taken at that λ, one without as it is. Rows are policies, columns λ.
    """
    columns = {}
    for weight in weights:
        own = points[points["cost_weight"].isna() | (points["cost_weight"] == weight)]
        own = own.set_index("policy")
        columns[weight] = own["accuracy"] - weight * own["cost_relative"]
    order = list(dict.fromkeys(points["policy"]))
    return pd.DataFrame(columns).reindex(order).rename_axis("policy")


def suite_table(points: pd.DataFrame, *, weight: float | None = None) -> pd.DataFrame:
    """A frame of :func:`xrouter.evaluation.suite.evaluate_suite` for reading, cheapest first.

    One row per policy: at cost weight ``weight`` where it has a dial (None: every position).
    Columns: policy, λ, accuracy % with its interval, $/1k, router $/1k, accuracy per $, cost saved
    against the best single model in %, turns, calls, and whether it is on the frontier.
    """
    shown = points
    if weight is not None:
        shown = points[points["cost_weight"].isna() | (points["cost_weight"] == weight)]
    shown = shown.sort_values("usd_per_1k", kind="stable")
    interval = [
        f"{100 * low:.1f}–{100 * high:.1f}"
        for low, high in zip(shown["accuracy_low"], shown["accuracy_high"], strict=True)
    ]
    return pd.DataFrame(
        {
            "policy": [NAMES.get(p, p) for p in shown["policy"]],
            "λ": ["" if w != w else f"{w:g}" for w in shown["cost_weight"]],
            "accuracy %": 100 * shown["accuracy"].to_numpy(),
            "95 % interval": interval,
            "$/1k": shown["usd_per_1k"].to_numpy(),
            "router $/1k": shown["router_usd_per_1k"].to_numpy(),
            "accuracy per $": shown["cost_utility"].to_numpy(),
            "cost saved %": 100 * shown["cost_save"].to_numpy(),
            "turns": shown["turns_mean"].to_numpy(),
            "calls": shown["calls_mean"].to_numpy(),
            "frontier": ["yes" if p else "" for p in shown["pareto"]],
        }
    )


def savings_table(savings: pd.DataFrame) -> pd.DataFrame:
    """A frame of :func:`xrouter.evaluation.suite.savings` for reading: one row per policy, for each
    target the share of cost saved in %, with its interval, or by how much accuracy fell short."""
    titles = {"at_100": "at parity", "at_98": "at 98 %", "at_95": "at 95 %"}
    rows: dict[str, dict[str, str]] = {}
    for _, row in savings.iterrows():
        cell = f"short by {100 * row['shortfall']:.1f} points"
        if row["met"]:
            bounds = f"{100 * row['cost_save_low']:.0f} to {100 * row['cost_save_high']:.0f}"
            cell = f"{100 * row['cost_save']:.0f} % ({bounds})"
        name = NAMES.get(row["policy"], row["policy"])
        rows.setdefault(name, {})[titles[row["target"]]] = cell
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("policy")


def normalization_effect(
    table: OutcomeTable, settings: Mapping[str, tuple[float, RewardConfig]]
) -> pd.DataFrame:
    """Mean penalty and reward of always calling one model, under several cost terms.

    ``settings`` maps a label to (λ, reward config). Columns: setting, model, usd_per_1k, accuracy,
    penalty (λ times normalized cost), reward.
    """
    rows = []
    for label, (weight, config) in settings.items():
        for j, model in enumerate(table.models):
            pairs = zip(table.quality[:, j], table.cost_usd[:, j], strict=True)
            scored = [reward(float(q), float(c), weight, config) for q, c in pairs]
            rows.append(
                {
                    "setting": label,
                    "model": model,
                    "usd_per_1k": 1e3 * float(table.cost_usd[:, j].mean()),
                    "accuracy": float(table.quality[:, j].mean()),
                    "penalty": sum(s.penalty for s in scored) / len(scored),
                    "reward": sum(s.total for s in scored) / len(scored),
                }
            )
    return pd.DataFrame(rows)
