"""Cut one recording into two: one to train and choose on, one that nobody has seen."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from xrouter.data.splits import split_tasks
from xrouter.fleets.recorded import RecordedFleet, write_recording


def split_recording(
    directory: str | Path, first: str | Path, second: str | Path, *, share: float = 0.5,
    seed: int = 0,
) -> dict[str, int]:  # fmt: skip
    """Write ``share`` of the queries to ``first`` and the rest to ``second``, stratified by
    benchmark; returns the query count of each. The rules of the source travel along."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"share={share}; must lie strictly between 0 and 1")
    fleet, folder = RecordedFleet(directory, allow_missing=True), Path(directory)
    parts = split_tasks(fleet.tasks(), seed, {"first": share, "second": 1.0 - share})
    queries = pd.read_parquet(folder / "queries.parquet")
    outcomes = pd.read_parquet(folder / "outcomes.parquet")
    prices = pd.read_csv(folder / "prices.csv")
    for name, target in (("first", first), ("second", second)):
        ids = {t.id for t in parts[name]}
        write_recording(
            target,
            queries[queries["query_id"].isin(ids)],
            outcomes[outcomes["query_id"].isin(ids)],
            prices,
            {**fleet.meta, "split": {"part": name, "share": share, "seed": seed}},
        )
    return {name: len(tasks) for name, tasks in parts.items()}
