"""Drawing pools and tasks, and cutting recordings: seeded, bounded, without leaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_recordings import frames, write

from xrouter.catalog import Catalog
from xrouter.data.curriculum import Curriculum, easiest_first
from xrouter.data.pools import PoolSampler
from xrouter.episode import Task
from xrouter.fleets.halves import split_recording
from xrouter.fleets.recorded import RecordedFleet, write_recording

CATALOG = Catalog.load()
TASKS = easiest_first([Task(f"t{i}", "q", difficulty=i / 50) for i in range(50)])


def draw(sampler: PoolSampler, seed: int) -> tuple[str, ...]:
    return sampler.draw(np.random.default_rng(seed))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_drawn_pools_respect_the_tier_ranges(seed: int) -> None:
    pool = draw(PoolSampler(CATALOG), seed)
    assert len(set(pool)) == len(pool) >= 2
    assert all(m in CATALOG for m in pool)
    for tier, (low, high) in PoolSampler(CATALOG).ranges.items():
        only = [m for m in pool if CATALOG[m].tiers == (tier,)]
        assert len(only) <= high
        assert sum(tier in CATALOG[m].tiers for m in pool) >= low


def test_equal_seeds_draw_equal_pools_and_fixed_shares_are_kept() -> None:
    sampler = PoolSampler(CATALOG, {"set3": 0.3})
    assert draw(sampler, 5) == draw(sampler, 5)
    share = np.mean([draw(sampler, s) == CATALOG.pool("set3") for s in range(2000)])
    assert 0.26 < share < 0.34


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fixed": {"set3": 1.2}}, "shares"),
        ({"fixed": {"set9": 0.5}}, "set9"),
        ({"ranges": {"gold": (1, 2)}}, "gold"),
        ({"ranges": {"budget": (3, 1)}}, "budget"),
    ],
)
def test_bad_pool_settings_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolSampler(CATALOG, **kwargs)


def test_the_curriculum_starts_easy_and_ends_with_everything() -> None:
    plan = Curriculum(start=0.2, full_at=0.5, mix=0.0)
    rng = np.random.default_rng(0)
    early = plan.draw(TASKS, 10, 0.0, rng)
    assert max(t.difficulty or 0 for t in early) < 0.2
    assert len({t.id for t in early}) == 10
    late = [t for _ in range(20) for t in plan.draw(TASKS, 25, 0.9, rng)]
    assert {t.id for t in late} == {t.id for t in TASKS}


def test_mixing_lets_hard_tasks_in_from_the_start() -> None:
    plan = Curriculum(start=0.2, full_at=1.0, mix=0.5)
    drawn = plan.draw(TASKS, 30, 0.0, np.random.default_rng(1))
    assert any((t.difficulty or 0) > 0.5 for t in drawn)


@given(st.floats(0, 1))
def test_the_eligible_share_grows_with_progress(progress: float) -> None:
    plan = Curriculum(start=0.3, full_at=0.6)
    assert 0.3 <= plan.eligible_share(progress) <= plan.eligible_share(1.0) == 1.0


@pytest.mark.parametrize("field", ["start", "full_at", "mix"])
def test_curriculum_shares_outside_zero_to_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Curriculum(**{field: 1.5})


def test_halves_share_no_query_keep_the_benchmarks_and_the_rules(tmp_path: Path) -> None:
    source = tmp_path / "all"
    write_recording(source, *frames(20), meta={"evaluation_only": True, "reason": "its rules"})
    counts = split_recording(source, tmp_path / "a", tmp_path / "b", share=0.5, seed=1)
    a, b = RecordedFleet(tmp_path / "a"), RecordedFleet(tmp_path / "b")
    assert not set(a.query_ids) & set(b.query_ids)
    assert counts == {"first": len(a.query_ids), "second": len(b.query_ids)}
    assert len(a.query_ids) + len(b.query_ids) == 40
    assert {t.source for t in a.tasks()} == {t.source for t in b.tasks()}
    assert a.evaluation_only
    assert b.evaluation_only


def test_a_share_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "all", *frames(5))
    with pytest.raises(ValueError, match="share=1"):
        split_recording(source, tmp_path / "a", tmp_path / "b", share=1.0)
