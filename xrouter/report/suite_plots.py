"""Plots of measured policies: a frame of :func:`xrouter.evaluation.suite.evaluate_suite` in, a
closed Figure out. Frames of recorded answers with the same columns work as well.

Needed columns: policy, kind, cost_weight (missing where a policy has no dial), accuracy in [0, 1],
usd_per_1k in USD per 1,000 queries. Optional: accuracy_low, accuracy_high.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xrouter.evaluation.stats import pareto_frontier
from xrouter.report.labels import place_labels
from xrouter.report.measured import NAMES, ORACLE
from xrouter.report.plots import (
    COLORS,
    FRONTIER_COLOR,
    MARKERS,
    OTHER_COLOR,
    OTHER_MARKER,
    add_note,
    plain_log_ticks,
    step_corners,
)
from xrouter.report.tables import ROUTER, SINGLE

Floats = npt.NDArray[np.float64]
LINES = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#0072B2", "#000000", "#7B4FB5", "#8C564B")
LINE_MARKERS = "sv^<>pPX"
ZOOM = 0.08


def suite_pareto(points: pd.DataFrame, *, note: str = "") -> Figure:
    """Accuracy over cost (log axis): above, the router over its dial beside single models and fixed
    rules; below, beside the baselines that have a dial, too. Both with the frontier of everything
    one could deploy (the oracle is not)."""
    fixed = points[points["cost_weight"].isna() | (points["kind"] == ROUTER)]
    dialed = points[points["cost_weight"].notna()]
    panels = [("The router, single models and fixed rules", fixed)]
    if (dialed["kind"] != ROUTER).any():
        panels.append(("The router and baselines with a dial, close up", dialed))
    fig, axes = plt.subplots(len(panels), 1, figsize=(7.0, 0.6 + 3.4 * len(panels)), squeeze=False)
    corners = _frontier(points[points["kind"] != ORACLE])
    for ax, (title, rows) in zip(axes.flat, panels, strict=True):
        _panel(ax, rows, corners, title)
    curves = dialed[dialed["kind"] != ROUTER]
    if len(panels) > 1:
        _draw_curves(axes[1, 0], curves)
        _zoom(axes[1, 0], dialed)
    _legend(fig, points)
    add_note(fig, note)
    fig.draw_without_rendering()
    _label_points(axes[0, 0], fixed, corners)
    if len(panels) > 1 and (dialed["kind"] == ROUTER).any():
        _label_points(axes[1, 0], dialed[dialed["kind"] == ROUTER], corners)
    plt.close(fig)
    return fig


def _frontier(points: pd.DataFrame) -> Floats:
    cost, quality = points["usd_per_1k"].to_numpy(), 100 * points["accuracy"].to_numpy()
    front = pareto_frontier(cost, quality)
    return step_corners(cost[front], quality[front], right=float(cost.max()) * 1.8)


def _panel(ax: Axes, rows: pd.DataFrame, corners: Floats, title: str) -> None:
    cost, quality = rows["usd_per_1k"].to_numpy(), 100 * rows["accuracy"].to_numpy()
    ax.plot(*corners.T, color=FRONTIER_COLOR, linewidth=1.0, zorder=1)
    ax.set_xscale("log")
    ax.set_xlim(cost.min() / 1.5, cost.max() * 1.6)
    ax.set_ylim(quality.min() - 4, quality.max() + 4)
    plain_log_ticks(ax)
    ax.set_xlabel("USD per 1,000 queries")
    ax.set_ylabel("accuracy, %")
    ax.set_title(title)
    for kind in dict.fromkeys(rows["kind"]):
        own = rows[rows["kind"] == kind]
        if kind == ROUTER:
            _draw_router(ax, own)
        elif kind != "baseline" or own["cost_weight"].isna().all():
            _draw_points(ax, own, COLORS.get(kind, OTHER_COLOR), MARKERS.get(kind, OTHER_MARKER))


def _zoom(ax: Axes, rows: pd.DataFrame) -> None:
    """Limit a panel to accuracies near the router's: what lies far below runs out of it."""
    router = rows[rows["kind"] == ROUTER]
    floor = (router if len(router) else rows)["accuracy"].min() - ZOOM
    near = rows[rows["accuracy"] >= floor]
    ax.set_ylim(100 * max(floor, near["accuracy"].min() - 0.04), 100 * near["accuracy"].max() + 4)
    ax.set_xlim(near["usd_per_1k"].min() / 1.5, near["usd_per_1k"].max() * 1.6)
    plain_log_ticks(ax)


def _draw_router(ax: Axes, rows: pd.DataFrame) -> None:
    order = rows.sort_values("cost_weight")
    xy = order["usd_per_1k"], 100 * order["accuracy"]
    ax.plot(*xy, color=COLORS[ROUTER], linewidth=1.4, zorder=3)
    _draw_points(ax, order, COLORS[ROUTER], MARKERS[ROUTER])


def _draw_points(ax: Axes, rows: pd.DataFrame, color: str, marker: str) -> None:
    cost, quality = rows["usd_per_1k"], 100 * rows["accuracy"]
    if {"accuracy_low", "accuracy_high"} <= set(rows.columns):
        low, high = 100 * rows["accuracy_low"], 100 * rows["accuracy_high"]
        ax.vlines(cost, low, high, color=color, linewidth=0.8, alpha=0.45, zorder=2)
    ax.plot(cost, quality, marker, color=color, zorder=4)


def _draw_curves(ax: Axes, rows: pd.DataFrame) -> None:
    """One line per baseline with a dial, told apart by colour and marker."""
    for i, (policy, own) in enumerate(rows.groupby("policy", sort=False)):
        order = own.sort_values("usd_per_1k")
        ax.plot(
            order["usd_per_1k"],
            100 * order["accuracy"],
            color=LINES[i % len(LINES)],
            marker=LINE_MARKERS[i % len(LINE_MARKERS)],
            markersize=3.2,
            linewidth=0.9,
            label=NAMES.get(str(policy), str(policy)),
            zorder=2,
        )
    ax.legend(loc="lower right", ncols=2, title="baselines with a dial", title_fontsize=7.5)


def _label_points(ax: Axes, rows: pd.DataFrame, corners: Floats) -> None:
    texts: dict[tuple[float, float], list[str]] = {}
    colors: dict[tuple[float, float], str] = {}
    for _, row in rows.iterrows():
        at = float(row["usd_per_1k"]), 100 * float(row["accuracy"])
        name = NAMES.get(row["policy"], row["policy"])
        texts.setdefault(at, []).append(
            f"λ={row['cost_weight']:g}" if row["kind"] == ROUTER else name
        )
        colors.setdefault(at, COLORS.get(row["kind"], OTHER_COLOR))
    shown = [_joined(names) for names in texts.values()]
    router = rows[rows["kind"] == ROUTER]
    lines = _chained([corners, _curve(router, "cost_weight")])
    place_labels(ax, np.array(list(texts)), shown, list(colors.values()), steps=lines)


def _curve(rows: pd.DataFrame, by: str) -> Floats:
    """Points along the line that joins ``rows`` in the order of column ``by``, [n, 2]."""
    order = rows.sort_values(by)
    at = np.arange(len(order))
    fine = np.linspace(0, max(len(order) - 1, 0), 8 * len(order))
    cost = np.log(order["usd_per_1k"].to_numpy(np.float64))
    quality = 100 * order["accuracy"].to_numpy(np.float64)
    if not len(order):
        return np.empty((0, 2))
    return np.column_stack([np.exp(np.interp(fine, at, cost)), np.interp(fine, at, quality)])


def _chained(lines: Iterable[Floats]) -> Floats:
    """Several lines as one, with NaN between them."""
    gap = np.full((1, 2), np.nan)
    return np.concatenate([part for line in lines for part in (line, gap)][:-1])


def _joined(names: Sequence[str]) -> str:
    """One label for policies at the same point."""
    weights = [name.removeprefix("λ=") for name in names if name.startswith("λ=")]
    if len(weights) == len(names):
        return "λ=" + ", ".join(weights)
    return " = ".join(names)


def _legend(fig: Figure, points: pd.DataFrame) -> None:
    shown = [k for k in (ROUTER, SINGLE, "baseline", ORACLE) if (points["kind"] == k).any()]
    names = {"baseline": "fixed rule", ROUTER: "trained router, over its dial λ"}
    handles = [
        plt.Line2D(
            [],
            [],
            color=COLORS[kind],
            marker=MARKERS[kind],
            linestyle="-" if kind == ROUTER else "",
            label=names.get(kind, kind),
        )
        for kind in shown
    ]
    handles.append(plt.Line2D([], [], color=FRONTIER_COLOR, linewidth=1.0, label="frontier"))
    fig.legend(handles=handles, loc="outside upper left", ncols=len(handles), columnspacing=1.4)


def routing_heatmap(
    routing: pd.DataFrame,
    *,
    weights: Iterable[float] | None = None,
    order: Sequence[str] = (),
    note: str = "",
) -> Figure:
    """Share of a domain's requests in which each model was called, one panel per cost weight.

    ``routing`` has the columns cost_weight, domain, model (``none``: answered without a call) and
    share. ``order`` lists the models from the top down; the others follow by name.
    """
    wanted = sorted(set(routing["cost_weight"]) if weights is None else set(weights))
    if lacking := [w for w in wanted if w not in set(routing["cost_weight"])]:
        raise ValueError(f"weights={lacking} are not in the frame; it has {wanted}")
    rows = routing[routing["cost_weight"].isin(wanted)]
    called = rows.groupby("model")["share"].max()
    models = [m for m in dict.fromkeys([*order, *sorted(called.index)]) if called.get(m, 0) >= 0.01]
    models = ["none", *(m for m in models if m != "none")]
    size = (7.0, 1.1 + 0.24 * len(models))
    fig, axes = plt.subplots(1, len(wanted), figsize=size, sharey=True, squeeze=False)
    for ax, weight in zip(axes.flat, wanted, strict=True):
        _heat_panel(ax, rows[rows["cost_weight"] == weight], models, weight)
    axes[0, 0].set_yticks(np.arange(len(models)) + 0.5, labels=["no call", *models[1:]], rotation=0)
    add_note(fig, note)
    plt.close(fig)
    return fig


def _heat_panel(ax: Axes, rows: pd.DataFrame, models: list[str], weight: float) -> None:
    wide = rows.pivot(index="model", columns="domain", values="share")
    wide = 100 * wide.reindex(models).fillna(0.0)
    text = wide.map(lambda x: f"{x:.0f}" if x >= 0.5 else "")
    sns.heatmap(
        wide,
        ax=ax,
        vmin=0,
        vmax=100,
        cmap="Blues",
        cbar=False,
        annot=text,
        fmt="",
        annot_kws={"fontsize": 6.5},
        linewidths=0.5,
        linecolor="white",
    )
    ax.set(xlabel="", ylabel="")
    ax.set_title(f"λ={weight:g}")
    ax.tick_params(axis="both", length=0)
    ax.set_xticks(
        np.arange(wide.shape[1]) + 0.5,
        labels=[str(d) for d in wide.columns],
        rotation=40,
        ha="right",
    )


def reward_normalization(effect: pd.DataFrame, *, noise: float, note: str = "") -> Figure:
    """What a cost term can teach: its size beside the noise of a group, and the order of models
    that follows from it.

    ``effect`` as :func:`xrouter.report.measured.normalization_effect` returns it; ``noise`` is the
    standard error of the mean quality of a group of samples, in reward units.
    """
    settings = list(dict.fromkeys(effect["setting"]))
    models = list(dict.fromkeys(effect.sort_values("usd_per_1k")["model"]))
    colors = dict(zip(settings, (COLORS[ROUTER], COLORS[SINGLE], "#009E73"), strict=False))
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.0, 0.9 + 0.24 * len(models)), sharey=True)
    for setting in settings:
        own = effect[effect["setting"] == setting].set_index("model").loc[models]
        y = range(len(models))
        left.plot(own["penalty"], y, "o", color=colors[setting], label=setting)
        right.plot(own["reward"], y, "o", color=colors[setting])
        best = int(np.argmax(own["reward"].to_numpy()))
        right.plot(own["reward"].iloc[best], best, "o", markersize=11, markerfacecolor="none",
                   color=colors[setting])  # fmt: skip
    left.axvline(noise, color="#555555", linewidth=1.0, linestyle="--")
    left.text(
        noise, -0.75, "noise of a group ", fontsize=6.5, color="#555555", va="center", ha="right"
    )
    left.set_xscale("log")
    left.set_yticks(range(len(models)), labels=models)
    left.set_ylim(-1.2, len(models) - 0.5)
    left.set_xlabel("mean penalty λ·cost, in correct answers (log)")
    left.set_title("How much a call costs")
    right.set_xlabel("mean reward (ring: highest)")
    right.set_title("Which model is worth most")
    fig.legend(loc="outside upper left", ncols=len(settings))
    add_note(fig, note)
    plt.close(fig)
    return fig


def cost_per_correct(points: pd.DataFrame, *, names: Mapping[str, str] | None = None) -> Figure:
    """USD per 1,000 *correct* answers of each policy at the position validation chose for parity
    (bar), cheapest first, with accuracy beside it."""
    shown = points[points["at_100"].astype(bool)].copy()
    shown["usd"] = shown["usd_per_1k"] / shown["accuracy"]
    shown = shown.sort_values("usd")
    labels = [(names or NAMES).get(p, p) for p in shown["policy"]]
    fig, ax = plt.subplots(figsize=(7.0, 0.6 + 0.17 * len(shown)))
    ax.barh(labels, shown["usd"], color=[COLORS.get(k, OTHER_COLOR) for k in shown["kind"]])
    for y, (usd, accuracy) in enumerate(zip(shown["usd"], shown["accuracy"], strict=True)):
        ax.text(usd, y, f" ${usd:.2f} at {100 * accuracy:.1f} %", va="center", fontsize=6.5)
    ax.set_xscale("log")
    ax.set_xlim(right=float(shown["usd"].max()) * 4)
    plain_log_ticks(ax)
    ax.margins(y=0.01)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("USD per 1,000 correct answers")
    plt.close(fig)
    return fig
