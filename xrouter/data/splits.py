"""Deterministic, stratified splits of a task list.

Membership depends on the seed and the task ids alone, not on the order of the list, so the
trainer, the baselines and the evaluation of one recording always agree on who is held out.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from xrouter.episode import Task

RECORDED_FRACTIONS: Mapping[str, float] = {"train": 0.4, "validation": 0.1, "test": 0.5}
"""How one recording is cut when no second one is given: half to fit and tune, half to report."""


def split_tasks(
    tasks: Iterable[Task],
    seed: int = 0,
    fractions: Mapping[str, float] = RECORDED_FRACTIONS,
) -> dict[str, list[Task]]:
    """Cut ``tasks`` into named parts, each with the same mix of ``task.source``.

    ``fractions`` are positive and sum to one. Every task lands in exactly one part; within a
    source the parts differ from their exact share by less than one task. Parts keep the order
    of ``tasks``. Raises ValueError for bad fractions or repeated task ids.
    """
    _check_fractions(fractions)
    items = list(tasks)
    strata: dict[str, list[Task]] = defaultdict(list)
    for task in items:
        strata[task.source].append(task)
    part_of: dict[str, str] = {}
    for source, members in strata.items():
        order = sorted(members, key=lambda task: _rank(seed, source, task.id))
        for name, start, stop in _cuts(fractions, len(order)):
            part_of.update((task.id, name) for task in order[start:stop])
    if len(part_of) != len(items):
        raise ValueError(
            f"tasks: {len(items) - len(part_of)} of {len(items)} ids are repeated; "
            "give every task its own id"
        )
    parts: dict[str, list[Task]] = {name: [] for name in fractions}
    for task in items:
        parts[part_of[task.id]].append(task)
    return parts


def _check_fractions(fractions: Mapping[str, float]) -> None:
    if not fractions or min(fractions.values()) <= 0:
        raise ValueError(f"fractions={dict(fractions)}; every part needs a positive share")
    if not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-9):
        raise ValueError(
            f"fractions={dict(fractions)} sum to {sum(fractions.values()):g}; they must sum to 1"
        )


def _cuts(fractions: Mapping[str, float], n: int) -> Iterable[tuple[str, int, int]]:
    start, share = 0, 0.0
    for name, fraction in fractions.items():
        share += fraction
        stop = min(n, round(share * n))
        yield name, start, stop
        start = stop


def _rank(seed: int, source: str, task_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{source}\x1f{task_id}".encode()).digest()
