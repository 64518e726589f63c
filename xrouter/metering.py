"""Costs of work that never returned.

A call that is cancelled, times out or breaks off has no return value to carry its cost, and yet
the provider bills what was consumed. Fleets and policies report it here; the orchestrator, which
made the call, collects it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOST: ContextVar[list[float] | None] = ContextVar("xrouter_lost_costs", default=None)


@contextmanager
def lost_costs() -> Iterator[list[float]]:
    """Collect what is reported inside the block, also by tasks started in it; USD each."""
    costs: list[float] = []
    token = _LOST.set(costs)
    try:
        yield costs
    finally:
        _LOST.reset(token)


def report_lost(usd: float) -> None:
    """Report USD consumed by a call that will raise instead of returning."""
    if (costs := _LOST.get()) is not None and usd > 0:
        costs.append(usd)
