"""Model cards: what the local router is told of each pool member besides name and tier.

A card is an *estimate made before routing*: from training outcomes where there are any, else from
the catalog. It never depends on the request at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xrouter.catalog import ModelSpec


@dataclass(frozen=True, slots=True)
class Card:
    """Expected cost of one call in USD, and expected accuracy in [0, 1] (None: unknown)."""

    cost_usd: float
    quality: float | None = None


def cards_from_catalog(specs: Iterable[ModelSpec]) -> dict[str, Card]:
    """Cards without any measurement: typical cost, unknown quality."""
    return {spec.id: Card(spec.typical_cost()) for spec in specs}


def cards_from_outcomes(
    models: Sequence[str], quality: np.ndarray, cost_usd: np.ndarray
) -> dict[str, Card]:
    """Mean cost and quality of each model; both arrays have shape [tasks, models]."""
    return {
        model: Card(float(cost_usd[:, j].mean()), float(quality[:, j].mean()))
        for j, model in enumerate(models)
    }


def shortlist(cards: Mapping[str, Card], size: int) -> tuple[str, ...]:
    """The ``size`` models most often among the best at some price of quality, cheapest first.

    For each exchange rate on a log grid the models are ranked by ``quality − rate·cost``; a
    model's merit is its best rank over the grid, earlier ties going to the cheaper. Models of
    unknown quality rank by cost alone.
    """
    if size < 1:
        raise ValueError(f"shortlist size={size}; must be at least 1")
    ids = sorted(cards, key=lambda m: (cards[m].cost_usd, m))
    cost = np.array([cards[m].cost_usd for m in ids])
    quality = np.array([cards[m].quality or 0.0 for m in ids])
    top = float(cost.max()) or 1.0
    rates = np.concatenate([[0.0], np.geomspace(0.01, 100.0, 33)])
    ranks = np.stack(
        [np.argsort(np.argsort(-(quality - r * cost / top), kind="stable")) for r in rates]
    )
    merit = ranks.min(axis=0) + ranks.mean(axis=0) / len(ids) / 10
    keep = set(np.argsort(merit, kind="stable")[:size].tolist())
    return tuple(m for i, m in enumerate(ids) if i in keep)
