"""Curriculum: from simple to hard by measured difficulty, with a mixing share of everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xrouter.episode import Task


@dataclass(frozen=True)
class Curriculum:
    """Which tasks may be drawn at a point of training.

    At progress p in [0, 1] the easiest share of tasks is eligible; it grows linearly from
    ``start`` at p = 0 to everything at p = ``full_at``. With probability ``mix`` a task is drawn
    from the whole set all the same, so that nothing is forgotten or met unprepared.
    ``start = 1`` turns the curriculum off.
    """

    start: float = 0.4
    full_at: float = 0.5
    mix: float = 0.2

    def __post_init__(self) -> None:
        for name in ("start", "full_at", "mix"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"curriculum.{name}={getattr(self, name)}; must lie in [0, 1]")
        if self.start == 0.0:
            raise ValueError("curriculum.start=0; some tasks must be eligible from the start")

    def eligible_share(self, progress: float) -> float:
        if self.full_at == 0.0 or progress >= self.full_at:
            return 1.0
        return self.start + (1.0 - self.start) * progress / self.full_at

    def draw(
        self, ordered: Sequence[Task], count: int, progress: float, rng: np.random.Generator
    ) -> list[Task]:
        """``count`` tasks of ``ordered`` (easiest first), without repetition where possible."""
        limit = max(1, round(self.eligible_share(progress) * len(ordered)))
        anywhere = rng.random(count) < self.mix
        pools = {False: rng.permutation(limit), True: rng.permutation(len(ordered))}
        taken: set[int] = set()
        picked = []
        for free in anywhere.tolist():
            order = pools[free]
            fresh = next((int(i) for i in order if int(i) not in taken), int(order[0]))
            taken.add(fresh)
            picked.append(ordered[fresh])
        return picked


def easiest_first(tasks: Sequence[Task]) -> list[Task]:
    """Sort by ``task.difficulty`` (unknown counts as 0.5), ties by id."""
    return sorted(tasks, key=lambda t: (0.5 if t.difficulty is None else t.difficulty, t.id))
