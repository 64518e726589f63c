"""Reward = quality − λ × normalized cost, with its parts.

Why normalise. The original charges raw dollars: ``quality × (K − min(λ·usd, cap))``. A query
costs about $0.005, so with λ = 3 the penalty is 0.015 beside a quality of 0 or 1, far inside the
noise of a group of samples. Here cost is measured in units of a *reference*: the mean cost of a
query when the best single model answers everything. λ then reads as an exchange rate: with
λ = 0.2, spending as much as the best single model costs a fifth of a correct answer.

Two forms:

- ``linear``: ``q − λ·c``; wrong answers pay for what they spent.
- ``gated``: ``q·(K − min(λ·c, cap))``, the original's; wrong answers earn 0 whatever they spent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Form = Literal["linear", "gated"]
Normalization = Literal["reference", "raw", "log"]


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """``cap`` bounds the penalty λ·c (None: unbounded); ``gate`` is the K of the gated form.

    ``reference_usd`` is needed by ``reference`` and ``log``. ``log`` compresses large costs:
    ``log2(1 + usd / reference)``.
    """

    form: Form = "linear"
    normalization: Normalization = "reference"
    reference_usd: float | None = None
    cap: float | None = None
    gate: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in ("linear", "gated"):
            raise ValueError(f"reward.form={self.form!r}; use 'linear' or 'gated'")
        if self.normalization not in ("reference", "raw", "log"):
            raise ValueError(
                f"reward.normalization={self.normalization!r}; use 'reference', 'raw' or 'log'"
            )
        if self.normalization != "raw" and not (self.reference_usd and self.reference_usd > 0):
            raise ValueError(
                f"reward.reference_usd={self.reference_usd}; normalization "
                f"{self.normalization!r} needs a positive reference cost"
            )
        if self.cap is not None and self.cap <= 0:
            raise ValueError(f"reward.cap={self.cap}; must be positive, or null for no cap")

    def normalize(self, usd: float) -> float:
        """Cost in reward units before λ; 1.0 is one reference query."""
        if self.normalization == "raw":
            return usd
        assert self.reference_usd is not None
        ratio = usd / self.reference_usd
        return math.log2(1.0 + ratio) if self.normalization == "log" else ratio


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward and the parts it was made of."""

    total: float
    quality: float
    cost_usd: float
    normalized_cost: float
    penalty: float


def reward(quality: float, cost_usd: float, cost_weight: float, config: RewardConfig) -> Reward:
    """Score one finished episode.

    ``quality`` in [0, 1]; ``cost_usd`` includes the router's own tokens; ``cost_weight`` is λ.
    """
    if not 0.0 <= quality <= 1.0:
        raise ValueError(f"quality={quality}; must lie in [0, 1]")
    if not (0 <= cost_usd < math.inf and 0 <= cost_weight < math.inf):
        raise ValueError(f"cost_usd={cost_usd}, cost_weight={cost_weight}; must be finite, >= 0")
    normalized = config.normalize(cost_usd)
    penalty = cost_weight * normalized
    if config.cap is not None:
        penalty = min(penalty, config.cap)
    if config.form == "gated":
        total = quality * (config.gate - penalty)
    else:
        total = quality - penalty
    return Reward(total, quality, cost_usd, normalized, penalty)
