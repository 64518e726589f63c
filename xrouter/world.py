"""A world is a fleet with its tasks: simulated, or a recording.

Training, evaluation and the notebooks open worlds here, so that all agree on splits, on
difficulty, and on the reference cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from xrouter.catalog import Catalog
from xrouter.episode import Task
from xrouter.orchestrator import Fleet
from xrouter.outcomes import OutcomeTable, collect_outcomes

SIMULATED_SIZES: Mapping[str, int] = {"train": 1200, "validation": 300, "test": 600}


@dataclass(frozen=True)
class World:
    """A fleet and its task splits. ``data_hash`` identifies the data in results."""

    fleet: Fleet
    splits: Mapping[str, Sequence[Task]]
    data_hash: str

    @property
    def kind(self) -> str:
        return self.fleet.world

    @cached_property
    def train_table(self) -> OutcomeTable:
        """Every model's outcome on the training tasks."""
        return asyncio.run(collect_outcomes(self.fleet, self.splits["train"]))


def open_simulated(
    *, seed: int = 0, sizes: Mapping[str, int] | None = None, catalog: Catalog | None = None
) -> World:
    """Procedural tasks answered by the calibrated skill model."""
    from xrouter.data.offline import build_tasks
    from xrouter.fleets.simulated import SimulatedFleet
    from xrouter.provenance import content_hash

    catalog = catalog or Catalog.load()
    splits = build_tasks(seed, dict(sizes or SIMULATED_SIZES))
    ids = {name: [t.id for t in tasks] for name, tasks in splits.items()}
    return World(SimulatedFleet(catalog, seed=seed), splits, content_hash(ids))


def open_recorded(
    directory: str | Path,
    *,
    seed: int = 0,
    fractions: Mapping[str, float] | None = None,
    models: Sequence[str] | None = None,
) -> World:
    """A recording, split within itself."""
    from xrouter.data.splits import RECORDED_FRACTIONS, split_tasks
    from xrouter.fleets.recorded import RecordedFleet

    fleet = RecordedFleet(directory, models=models)
    splits = split_tasks(fleet.tasks(), seed, fractions or RECORDED_FRACTIONS)
    return World(fleet, splits, fleet.data_hash)
