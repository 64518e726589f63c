"""Plots of tasks and of what models make of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from xrouter.outcomes import OutcomeTable
from xrouter.report.plots import add_note

BAND_COLORS = {"easy": "#A6CEE3", "medium": "#4C93C3", "hard": "#0B4F8A"}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def task_counts(tasks: pd.DataFrame, *, note: str = "") -> Figure:
    """Tasks per domain, stacked by difficulty band, one panel per split.

    ``tasks`` has the columns split, domain and band.
    """
    splits = list(dict.fromkeys(tasks["split"]))
    domains = list(dict.fromkeys(tasks["domain"].sort_values()))
    fig, axes = plt.subplots(1, len(splits), figsize=(7.0, 2.6), squeeze=False)
    for ax, split in zip(axes.flat, splits, strict=True):
        own = tasks[tasks["split"] == split]
        left = np.zeros(len(domains))
        for band, color in BAND_COLORS.items():
            counts = own[own["band"] == band]["domain"].value_counts().reindex(domains).fillna(0)
            ax.barh(domains, counts, left=left, color=color, label=band)
            left += counts.to_numpy()
        ax.set_title(f"{split}: {len(own)}")
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("tasks")
        if ax is not axes[0, 0]:
            ax.set_yticklabels([])
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    add_note(fig, note)
    plt.close(fig)
    return fig


def accuracy_by_difficulty(
    table: OutcomeTable, models: Sequence[str], *, bins: int = 6, note: str = ""
) -> tuple[Figure, pd.DataFrame]:
    """Accuracy of some models over task difficulty, with ±1.96 standard errors.

    Returns the figure and the plotted frame: model, difficulty (mean of the bin), accuracy, sem, n.
    Tasks without difficulty or with difficulty 0 (small talk) are left out.
    """
    difficulty = np.array([t.difficulty or 0.0 for t in table.tasks])
    edges = np.linspace(0.0, 1.0, bins + 1)
    rows = []
    for model in models:
        quality = table.quality[:, table.column(model)]
        for low, high in pairwise(edges):
            inside = (difficulty > low) & (difficulty <= high)
            if inside.sum() > 1:
                own = quality[inside]
                sem = own.std(ddof=1) / np.sqrt(len(own))
                rows.append((model, difficulty[inside].mean(), own.mean(), sem, len(own)))
    frame = pd.DataFrame(rows, columns=["model", "difficulty", "accuracy", "sem", "n"])
    fig, ax = plt.subplots(figsize=(7.0, 3.2))
    for color, model in zip(COLORS, models, strict=False):
        own = frame[frame["model"] == model]
        ax.errorbar(own["difficulty"], 100 * own["accuracy"], 196 * own["sem"], color=color,
                    marker="o", label=model, elinewidth=0.8)  # fmt: skip
    ax.set(xlabel="difficulty of the task", ylabel="accuracy, %", ylim=(0, 104))
    ax.legend(loc="lower left")
    add_note(fig, note)
    plt.close(fig)
    return fig, frame


def agreement_table(table: OutcomeTable, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """What the agreement of two models says. Columns: pair, agree (share of tasks), first right,
    first right | agree, first right | differ. Small talk is left out."""
    keep = [i for i, task in enumerate(table.tasks) if task.domain != "chat"]
    table = table.rows(keep)
    rows = []
    for first, second in pairs:
        a, b = table.column(first), table.column(second)
        code, right = table.answer_code, table.quality[:, a]
        agree = (code[:, a] == code[:, b]) & (code[:, a] >= 0)
        rows.append(
            {
                "pair": f"{first} + {second}",
                "agree": agree.mean(),
                "first right": right.mean(),
                "first right | agree": right[agree].mean() if agree.any() else np.nan,
                "first right | differ": right[~agree].mean() if (~agree).any() else np.nan,
            }
        )
    return pd.DataFrame(rows)


def accuracy_by_domain(points: pd.DataFrame, policies: Sequence[str], *, note: str = "") -> Figure:
    """Accuracy per domain of some policies: a row per domain, a marker per policy.

    ``points`` is a suite frame with one row for each of ``policies``.
    """
    columns = [c for c in points.columns if c.startswith("accuracy/")]
    domains = [c.removeprefix("accuracy/") for c in columns]
    fig, ax = plt.subplots(figsize=(7.0, 0.9 + 0.3 * len(domains)))
    for i, (color, policy) in enumerate(zip(COLORS, policies, strict=False)):
        values = 100 * points.set_index("policy").loc[policy, columns].to_numpy(float)
        y = np.arange(len(domains)) + 0.12 * (i - (len(policies) - 1) / 2)
        ax.plot(values, y, "o", color=color, label=policy, markersize=4.5)
    ax.set_yticks(range(len(domains)), labels=domains)
    ax.invert_yaxis()
    ax.set_xlabel("accuracy, %")
    fig.legend(loc="outside upper left", ncols=len(policies))
    add_note(fig, note)
    plt.close(fig)
    return fig
