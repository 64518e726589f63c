"""Plots of training: the ``metrics.csv`` and ``validation.csv`` of one or several runs in, a closed
Figure out. Several runs are shown as thin lines with their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xrouter.report.plots import add_note

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SMOOTH_STEPS = 5
HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6}

# title, y label, [(column, label)]
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Reward", "mean reward", (("reward", "reward"),)),
    ("Accuracy", "share of correct answers", (("accuracy", "accuracy"),)),
    ("Cost", "USD per 1,000 requests", (("usd_per_1k", "cost"),)),
    ("Turns and calls", "per request", (("turns/mean", "turns"), ("routing/calls_mean", "calls"))),
    ("Entropy", "nats per token", (("entropy", "entropy"),)),
    (
        "Clipped tokens",
        "share of tokens",
        (("clip_ratio/low_mean", "below 1 − ε"), ("clip_ratio/high_mean", "above 1 + ε")),
    ),
)


def training_panel(runs: Mapping[str, pd.DataFrame], *, note: str = "") -> Figure:
    """Six panels over the steps: reward, accuracy, cost, turns and calls, entropy, clip ratios.

    ``runs`` maps a label to a ``metrics.csv``. Thin lines are runs, thick ones the mean over runs
    and the last steps (moving average of 5). Raises ValueError without runs or columns.
    """
    frames = _checked(runs)
    fig, axes = plt.subplots(2, 3, figsize=(7.0, 4.2), sharex=True)
    for ax, (title, label, series) in zip(axes.flat, PANELS, strict=True):
        for color, (column, name) in zip(COLORS, series, strict=False):
            _draw_series(ax, [f.set_index("step")[column] for f in frames], color, name)
        ax.set_title(title)
        ax.set_ylabel(label)
        if len(series) > 1:
            ax.legend(loc="best")
    for ax in axes[1]:
        ax.set_xlabel("DAPO step")
    add_note(fig, note)
    plt.close(fig)
    return fig


def _checked(runs: Mapping[str, pd.DataFrame]) -> list[pd.DataFrame]:
    if not runs:
        raise ValueError("runs is empty; give at least one metrics frame")
    frames = [f.assign(usd_per_1k=1e3 * f["cost/mean_usd"]) for f in runs.values()]
    for label, frame in zip(runs, frames, strict=True):
        wanted = {column for _, _, series in PANELS for column, _ in series}
        if lacking := sorted(wanted - set(frame.columns)):
            raise ValueError(f"run {label!r}: metrics lack the columns {lacking}")
    return frames


def _draw_series(ax: Axes, runs: Sequence[pd.Series], color: str, label: str) -> None:
    for run in runs:
        ax.plot(run.index, run, color=color, linewidth=0.6, alpha=0.4)
    mean = pd.concat(runs, axis=1).mean(axis=1).rolling(SMOOTH_STEPS, min_periods=1).mean()
    ax.plot(mean.index, mean, color=color, linewidth=1.6, label=label)


def validation_curves(runs: Mapping[str, pd.DataFrame], *, note: str = "") -> Figure:
    """Held-out reward over the steps, one panel per cost weight, ±1.96 standard errors per run;
    the dashed line is the warm start (mean over runs at step 0), hollow markers are each run's.

    ``runs`` maps a label to a ``validation.csv``.
    """
    if not runs:
        raise ValueError("runs is empty; give at least one validation frame")
    weights = sorted(set.intersection(*(set(f["cost_weight"]) for f in runs.values())))
    fig, axes = plt.subplots(1, len(weights), figsize=(7.0, 3.2), squeeze=False, sharey=True)
    for ax, weight in zip(axes.flat, weights, strict=True):
        _validation_panel(ax, runs, weight)
    axes[0, 0].set_ylabel("held-out reward")
    axes[0, -1].legend(loc="lower right")
    add_note(fig, note)
    plt.close(fig)
    return fig


def _validation_panel(ax: Axes, runs: Mapping[str, pd.DataFrame], weight: float) -> None:
    start = []
    shift = (np.arange(len(runs)) - (len(runs) - 1) / 2) * _shift(runs)
    for offset, color, (label, frame) in zip(shift, COLORS, runs.items(), strict=False):
        own = frame[frame["cost_weight"] == weight].sort_values("step")
        x = own["step"] + offset
        ax.errorbar(x, own["reward"], 1.96 * own["reward_sem"], color=color, marker="o",
                    markersize=3.5, linewidth=1.2, elinewidth=0.8, label=label)  # fmt: skip
        ax.plot(x.iloc[:1], own["reward"].iloc[:1], "o", color=color, markerfacecolor="white",
                markersize=5, zorder=4)  # fmt: skip
        start.append(float(own["reward"].iloc[0]))
    ax.axhline(float(np.mean(start)), color="#555555", linestyle="--", linewidth=0.9)
    ax.annotate("warm start", (1.0, float(np.mean(start))), xycoords=("axes fraction", "data"),
                xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=6.5,
                color="#555555", bbox=HALO, zorder=5)  # fmt: skip
    ax.set_title(f"λ={weight:g}")
    ax.set_xlabel("DAPO step")


def _shift(runs: Mapping[str, pd.DataFrame]) -> float:
    """Horizontal distance between the error bars of two runs, in steps."""
    return 0.012 * max(float(f["step"].max()) for f in runs.values())
