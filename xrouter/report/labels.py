"""Point labels that do not cover each other: a small deterministic search over positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

Floats = npt.NDArray[np.float64]
RADII = (6.0, 10.0, 15.0, 21.0, 28.0)
DIRECTIONS = 16
LEADER_FROM = 12.0
PASSES = 4
MARKER_POINTS = 3.5
HALO = [withStroke(linewidth=1.4, foreground="white")]


def place_labels(
    ax: Axes,
    xy: Floats,
    texts: Sequence[str],
    colors: Sequence[str],
    *,
    steps: Floats | None = None,
    size: float = 6.5,
) -> list[Bbox]:
    """Write one label per point ``xy`` [n, 2] (data units) and return the boxes in pixels.

    Axis limits and layout must be final: call ``fig.draw_without_rendering()`` first. Labels
    avoid each other, the markers, the edge of the axes and the line through the corners
    ``steps`` [m, 2], and stay near their point; one that ends up farther away gets a thin line.
    """
    pixels_per_point = ax.figure.dpi / 72
    centers = np.asarray(ax.transData.transform(xy), np.float64)
    sizes = np.array([_text_size(ax, text, size) for text in texts]).reshape(-1, 2)
    offsets = _candidate_offsets() * pixels_per_point
    marker = MARKER_POINTS * pixels_per_point
    boxes = _candidate_boxes(centers, sizes, offsets)
    fixed = _fixed_costs(boxes, centers, offsets, ax.get_window_extent(), marker)
    if steps is not None and len(steps) > 1:
        fixed += _line_cost(boxes, np.asarray(ax.transData.transform(steps), np.float64))
    choice = _choose(boxes, fixed)
    for i, text in enumerate(texts):
        middle = boxes[i, choice[i]].reshape(2, 2).mean(axis=0) - centers[i]
        far = float(np.hypot(*offsets[choice[i]])) > LEADER_FROM * pixels_per_point
        _annotate(ax, text, xy[i], middle / pixels_per_point, colors[i], size, leader=far)
    return [Bbox(boxes[i, choice[i]].reshape(2, 2)) for i in range(len(texts))]


def _text_size(ax: Axes, text: str, size: float) -> tuple[float, float]:
    probe = ax.text(0, 0, text, fontsize=size)
    box = probe.get_window_extent()
    probe.remove()
    return box.width, box.height


def _candidate_offsets() -> Floats:
    """[k, 2] in points: rings around the point, nearest first, starting to the right."""
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    ring = np.column_stack([np.cos(angles), np.sin(angles)])
    return np.concatenate([radius * ring for radius in RADII])


def _candidate_boxes(centers: Floats, sizes: Floats, offsets: Floats) -> Floats:
    """[n, k, 4] as x0, y0, x1, y1: the label touches its anchor with the near side."""
    anchor = centers[:, None] + offsets[None]
    direction = offsets / np.linalg.norm(offsets, axis=1, keepdims=True)
    middle = anchor + direction[None] * sizes[:, None] / 2
    half = np.broadcast_to(sizes[:, None] / 2, middle.shape)
    return np.concatenate([middle - half, middle + half], axis=2)


def _fixed_costs(
    boxes: Floats, centers: Floats, offsets: Floats, frame: Bbox, marker: float
) -> Floats:
    """[n, k]: distance, overlap with markers, and area outside the axes."""
    distance = np.linalg.norm(offsets, axis=1) / np.linalg.norm(offsets, axis=1).min()
    markers = np.concatenate([centers - marker, centers + marker], axis=1)
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    inside = _overlap(boxes, np.array([frame.x0, frame.y0, frame.x1, frame.y1]))
    covered: Floats = np.zeros(boxes.shape[:2])
    for box in markers:
        covered += _overlap(boxes, box)
    return 0.5 * distance[None] + 40 * covered / marker**2 + 400 * (area - inside) / area


def _line_cost(boxes: Floats, corners: Floats) -> Floats:
    """[n, k]: a label that a horizontal or vertical segment runs through is hard to read."""
    ends = np.stack([corners[:-1], corners[1:]])
    segments = np.concatenate([ends.min(axis=0) - 1, ends.max(axis=0) + 1], axis=1)
    crossed: Floats = np.zeros(boxes.shape[:2])
    for box in segments:
        crossed += _overlap(boxes, box) > 0
    return 4.0 * crossed


def _overlap(boxes: Floats, other: Floats) -> Floats:
    """Area shared with one box; ``boxes`` [..., 4]."""
    width = np.minimum(boxes[..., 2], other[2]) - np.maximum(boxes[..., 0], other[0])
    height = np.minimum(boxes[..., 3], other[3]) - np.maximum(boxes[..., 1], other[1])
    return np.clip(width, 0, None) * np.clip(height, 0, None)


def _choose(boxes: Floats, fixed: Floats) -> list[int]:
    """The best candidate per label given the others, crowded labels first, over some passes."""
    crowd = fixed.min(axis=1) + fixed.mean(axis=1)
    order = np.argsort(-crowd, kind="stable")
    choice: dict[int, int] = {}
    for _ in range(PASSES):
        for i in map(int, order):
            clash: Floats = np.zeros(len(fixed[i]))
            for j, k in choice.items():
                if j != i:
                    clash += _overlap(boxes[i], boxes[j, k])
            choice[i] = int(np.argmin(fixed[i] + 3 * clash))
    return [choice[i] for i in range(len(fixed))]


def _annotate(
    ax: Axes, text: str, xy: Floats, offset: Floats, color: str, size: float, *, leader: bool
) -> None:
    line = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 2}
    note = ax.annotate(
        text,
        xy=(float(xy[0]), float(xy[1])),
        xytext=(float(offset[0]), float(offset[1])),
        textcoords="offset points",
        fontsize=size,
        color=color,
        ha="center",
        va="center",
        arrowprops=line if leader else None,
        path_effects=HALO,
        zorder=4,
    )
    note.set_in_layout(False)
