"""A picture of the system, drawn with matplotlib."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SOFT = "#333333", "#777777"


@dataclass(frozen=True)
class Box:
    """A labelled box: centre and size in axes units, a title and small lines below it."""

    x: float
    y: float
    width: float
    height: float
    title: str
    lines: str
    color: str


BOXES = {
    "task": Box(9, 40, 15, 15, "Task", "query, history,\nverifier", "#E8E8E8"),
    "policy": Box(43, 68, 40, 18, "Policy: who decides",
                  "trained router · chat model · baselines", "#FBE3D6"),
    "loop": Box(43, 40, 22, 15, "Orchestrator", "the only turn loop", "#DCEBF7"),
    "fleet": Box(43, 12, 40, 18, "Fleet: who answers", "simulated · recorded · live models",
                 "#DDF1E4"),
    "episode": Box(74, 40, 15, 15, "Episode", "turns, tokens,\ncost, answer", "#E8E8E8"),
    "reward": Box(93, 64, 13, 12, "Reward", "training", "#FFFFFF"),
    "metrics": Box(93, 40, 13, 12, "Metrics", "evaluation", "#FFFFFF"),
    "reply": Box(93, 16, 13, 12, "Reply", "serving", "#FFFFFF"),
}  # fmt: skip
ARROWS = (
    ((16.5, 40), (32, 40), ""),
    ((38, 47.5), (38, 59), "state"),
    ((48, 59), (48, 47.5), "tool calls"),
    ((38, 32.5), (38, 21), "call"),
    ((48, 21), (48, 32.5), "completion"),
    ((54, 40), (66.5, 40), ""),
    ((81.5, 44), (86.5, 59), ""),
    ((81.5, 40), (86.5, 40), ""),
    ((81.5, 36), (86.5, 21), ""),
)


def system_diagram() -> Figure:
    """Task → orchestrator (with policy and fleet) → episode → reward, metrics or reply."""
    fig, ax = plt.subplots(figsize=(7.0, 3.3))
    ax.set(xlim=(0, 100), ylim=(0, 80))
    ax.axis("off")
    for start, end, label in ARROWS:
        _draw_arrow(ax, start, end, label)
    for box in BOXES.values():
        _draw_box(ax, box)
    plt.close(fig)
    return fig


def _draw_box(ax: Axes, box: Box) -> None:
    corner = box.x - box.width / 2, box.y - box.height / 2
    patch = FancyBboxPatch(
        corner,
        box.width,
        box.height,
        boxstyle="round,pad=0,rounding_size=1.5",
        facecolor=box.color,
        edgecolor=INK,
        linewidth=0.9,
    )
    ax.add_patch(patch)
    rows = box.lines.count("\n") + 1
    ax.text(box.x, box.y + 1.6 * rows, box.title, ha="center", va="center", fontsize=8.5,
            fontweight="bold", color=INK)  # fmt: skip
    ax.text(box.x, box.y - 2.6, box.lines, ha="center", va="center", fontsize=6.8, color=INK)


def _draw_arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], label: str) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=9, color=INK, linewidth=0.9, shrinkA=1,
            shrinkB=1,
        )
    )  # fmt: skip
    if label:
        left = start[0] < BOXES["loop"].x
        x = start[0] + (-1.2 if left else 1.2)
        ax.text(x, (start[1] + end[1]) / 2, label, ha="right" if left else "left", va="center",
                fontsize=6.8, color=SOFT)  # fmt: skip
