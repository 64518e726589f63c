"""Per-sample model pools: fixed sets with their shares, else so many models drawn per tier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from xrouter.catalog import TIERS, Catalog

PAPER_RANGES: Mapping[str, tuple[int, int]] = {
    "premium": (1, 5),
    "standard": (1, 5),
    "budget": (1, 5),
    "specialized": (0, 3),
}


@dataclass(frozen=True)
class PoolSampler:
    """Draws pools from a catalog.

    ``fixed`` maps pool names (or ``all``) to probabilities; with the remaining probability the
    pool is drawn per tier, uniformly between the bounds of ``ranges`` (clipped to what the tier
    has). A drawn pool has at least ``min_size`` models.
    """

    catalog: Catalog
    fixed: Mapping[str, float] = field(default_factory=dict)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=lambda: PAPER_RANGES)
    min_size: int = 2

    def __post_init__(self) -> None:
        shares = list(self.fixed.values())
        if any(s < 0 for s in shares) or sum(shares) > 1 + 1e-9:
            raise ValueError(f"pool.fixed={dict(self.fixed)}; shares must be >= 0, sum at most 1")
        for name in self.fixed:
            self.catalog.pool(name)
        for tier, (low, high) in self.ranges.items():
            if tier not in TIERS or not 0 <= low <= high:
                raise ValueError(f"pool.ranges.{tier}={[low, high]}; use a tier of {TIERS} and "
                                 "0 <= low <= high")  # fmt: skip
        if len(self.catalog) < self.min_size:
            raise ValueError(f"pool.min_size={self.min_size}; only {len(self.catalog)} models")

    def draw(self, rng: np.random.Generator) -> tuple[str, ...]:
        """One pool, in catalog order."""
        point = float(rng.random())
        for name, share in self.fixed.items():
            if point < share:
                return self.catalog.pool(name)
            point -= share
        chosen: set[str] = set()
        for tier, (low, high) in self.ranges.items():
            ids = [m.id for m in self.catalog.tier(tier)]
            count = min(len(ids), int(rng.integers(low, high + 1)))
            chosen.update(str(m) for m in rng.permutation(ids)[:count])
        rest = [m.id for m in self.catalog if m.id not in chosen]
        missing = max(0, self.min_size - len(chosen))
        chosen.update(str(m) for m in rng.permutation(rest)[:missing])
        return tuple(m.id for m in self.catalog if m.id in chosen)
