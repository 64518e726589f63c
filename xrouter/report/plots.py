"""Plots: a tidy frame in, a closed matplotlib Figure out (see :mod:`xrouter.report.tables`).

Figures are closed so that a notebook shows them once, by display or as a cell's last value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from xrouter.evaluation.stats import pareto_frontier
from xrouter.report.labels import place_labels
from xrouter.report.tables import ROUTER, SINGLE

COLORS = {ROUTER: "#D55E00", SINGLE: "#0072B2", "baseline": "#009E73", "oracle": "#000000"}
MARKERS = {ROUTER: "D", SINGLE: "o", "baseline": "s", "oracle": "*"}
Floats = npt.NDArray[np.float64]
OTHER_COLOR, OTHER_MARKER = "#CC79A7", "^"
FRONTIER_COLOR = "#8A8A8A"


def cost_quality(
    points: pd.DataFrame, *, columns: int = 2, quality_label: str = "score, %", note: str = ""
) -> Figure:
    """Quality over cost (log axis), one panel per benchmark, with the step frontier.

    ``points`` is a tidy point frame; optional columns: ``cost_unit`` (axis label),
    ``quality_low`` and ``quality_high`` (interval). Points that another one dominates are
    hollow. Every point is labelled with its ``system``.
    """
    panels = list(dict.fromkeys(points["panel"]))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = (7.0, 0.5 + rows * (2.6 if columns > 1 else 4.2))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    corners = [
        _cost_quality_panel(ax, points[points["panel"] == panel], panel)
        for ax, panel in zip(axes.flat, panels, strict=False)
    ]
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel(quality_label)
    _legend(fig, points, note)
    fig.draw_without_rendering()
    for ax, panel, steps in zip(axes.flat, panels, corners, strict=False):
        here = points[points["panel"] == panel]
        xy = np.column_stack([here["cost_usd"], 100 * here["quality"]])
        colors = [COLORS.get(kind, OTHER_COLOR) for kind in here["kind"]]
        place_labels(ax, xy, list(here["system"]), colors, steps=steps)
    plt.close(fig)
    return fig


def _cost_quality_panel(ax: Axes, rows: pd.DataFrame, title: str) -> Floats:
    """Draw one panel; returns the corners of its frontier, [m, 2] in data units."""
    cost, quality = rows["cost_usd"].to_numpy(), 100 * rows["quality"].to_numpy()
    front = pareto_frontier(cost, quality)
    corners = step_corners(cost[front], quality[front], right=float(cost.max()) * 2.2)
    ax.plot(*corners.T, color=FRONTIER_COLOR, linewidth=1.0, zorder=1)
    on_front = np.isin(np.arange(len(rows)), front)
    if {"quality_low", "quality_high"} <= set(rows.columns):
        low, high = 100 * rows["quality_low"].to_numpy(), 100 * rows["quality_high"].to_numpy()
        ax.vlines(cost, low, high, color=FRONTIER_COLOR, linewidth=0.8, zorder=2)
    for i, kind in enumerate(rows["kind"]):
        color = COLORS.get(kind, OTHER_COLOR)
        ax.plot(
            cost[i],
            quality[i],
            MARKERS.get(kind, OTHER_MARKER),
            color=color,
            markerfacecolor=color if on_front[i] else "white",
            zorder=3,
        )
    ax.set_xscale("log")
    ax.set_xlim(cost.min() / 2.2, cost.max() * 2.2)
    margin = max(2.0, 0.13 * float(np.ptp(quality)))
    ax.set_ylim(quality.min() - margin, quality.max() + margin)
    plain_log_ticks(ax)
    unit = rows["cost_unit"].iloc[0] if "cost_unit" in rows.columns else "USD per query"
    ax.set_xlabel(unit)
    ax.set_title(title)
    return corners


def step_corners(cost: Floats, quality: Floats, *, right: float) -> Floats:
    """The frontier as a staircase: each point's quality holds until the next point's cost."""
    x = np.repeat(np.append(cost, right), 2)[1:-1]
    return np.column_stack([x, np.repeat(quality, 2)])


def plain_log_ticks(ax: Axes) -> None:
    low, high = ax.get_xlim()
    subs = (1.0,) if high / low > 100 else (1.0, 3.0)
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"${x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _legend(fig: Figure, points: pd.DataFrame, note: str) -> None:
    handles: list[Any] = [
        plt.Line2D([], [], marker=MARKERS.get(kind, OTHER_MARKER), linestyle="", label=kind)
        for kind in dict.fromkeys(points["kind"])
    ]
    for handle in handles:
        handle.set_color(COLORS.get(handle.get_label(), OTHER_COLOR))
    handles.append(
        plt.Line2D([], [], marker="o", markerfacecolor="white", color="#555555", linestyle="")
    )
    handles[-1].set_label("hollow: dominated (another point is as good for less)")
    handles.append(plt.Line2D([], [], color=FRONTIER_COLOR, linewidth=1.0, label="frontier"))
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), columnspacing=1.2)
    add_note(fig, note)


def add_note(fig: Figure, note: str) -> None:
    """A small line of text under the figure, such as the world its numbers belong to."""
    if note:
        fig.supxlabel(note, fontsize=7, color="#555555", x=0.01, ha="left")


def cost_utility_dots(points: pd.DataFrame, *, columns: int = 3, note: str = "") -> Figure:
    """Cost utility (quality in [0, 1] per USD, log axis) of each system, one panel per benchmark.

    ``points`` as :func:`xrouter.report.tables.cost_utility` returns it. Systems are ordered by
    their mean rank, the best at the top, in the same order in all panels.
    """
    panels = list(dict.fromkeys(points["panel"]))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    order = _mean_rank_order(points)
    size = (7.0, 0.5 + rows * (0.75 + 0.155 * len(order)))
    fig, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    for ax, panel in zip(axes.flat, panels, strict=False):
        _utility_panel(ax, points[points["panel"] == panel], order, panel)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    axes[0, 0].set_ylim(len(order) - 0.5, -0.5)
    add_note(fig, note)
    plt.close(fig)
    return fig


def _mean_rank_order(points: pd.DataFrame) -> list[str]:
    ranks = points.groupby("panel")["utility"].rank(ascending=False)
    mean = ranks.groupby(points["system"]).mean()
    return list(mean.sort_values(kind="stable").index)


def _utility_panel(ax: Axes, rows: pd.DataFrame, order: Sequence[str], title: str) -> None:
    best = rows["utility"].max()
    for _, row in rows.iterrows():
        y = order.index(row["system"])
        color = COLORS.get(row["kind"], OTHER_COLOR)
        ax.plot([rows["utility"].min() / 1.6, row["utility"]], [y, y], color=color, linewidth=0.8)
        ax.plot(row["utility"], y, MARKERS.get(row["kind"], OTHER_MARKER), color=color)
    ax.axvline(best, color=FRONTIER_COLOR, linewidth=0.8, linestyle=":")
    ax.set_xscale("log")
    ax.set_xlim(rows["utility"].min() / 1.6, best * 1.6)
    ax.set_yticks(range(len(order)), labels=list(order))
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_locator(LogLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1 else f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    unit = rows["cost_unit"].iloc[0].removeprefix("USD ") if "cost_unit" in rows.columns else ""
    ax.set_xlabel(f"score per USD, {unit}".rstrip(", "))
    ax.set_title(title)
