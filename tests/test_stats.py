import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.isotonic import isotonic_regression

from xrouter.evaluation.stats import (
    Point,
    best_within,
    bootstrap,
    cheapest_at,
    cost_save,
    cost_utility,
    frontier_gap,
    holm,
    isotonic,
    mcnemar,
    paired_difference,
    paired_saving,
    pareto_frontier,
    perf_gain,
    resampled_means,
    saving,
)

marks = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60)
finite = st.floats(-5, 5, allow_nan=False)


# --- intervals ---------------------------------------------------------------------------------


def test_interval_of_a_mean_is_close_to_the_normal_one():
    values = np.random.default_rng(0).normal(2.0, 1.0, 400)
    found = bootstrap(values, n_boot=4000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert found.estimate == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for k in range(200):
        found = bootstrap(rng.binomial(1, 0.8, 150), n_boot=300, level=0.9, seed=k)
        hits += found.low <= 0.8 <= found.high
    assert 0.83 <= hits / 200 <= 0.96


def test_pairing_narrows_the_interval_of_correlated_systems():
    rng = np.random.default_rng(2)
    base = rng.normal(0, 1, 300)
    a, b = base + rng.normal(0, 0.1, 300), base + rng.normal(0, 0.1, 300)
    paired = paired_difference(a, b)
    shuffled = paired_difference(a, rng.permutation(b))
    assert paired.high - paired.low < 0.3 * (shuffled.high - shuffled.low)


def test_intervals_repeat_with_the_seed_and_only_then():
    values = np.random.default_rng(3).random(50)
    assert bootstrap(values, seed=4) == bootstrap(values, seed=4)
    assert bootstrap(values, seed=4) != bootstrap(values, seed=5)


def test_columns_are_resampled_by_the_same_rows():
    values = np.random.default_rng(4).random(40)
    means = resampled_means(np.stack([values, 2 * values], axis=1), n_boot=600)
    assert means.shape == (600, 2)
    assert means[:, 1] == pytest.approx(2 * means[:, 0])


def test_saving_is_relative_to_the_reference():
    cost = np.array([1.0, 3.0])
    assert paired_saving(cost, 4 * cost).to_dict() == {"estimate": 0.75, "low": 0.75, "high": 0.75}


def test_unequal_lengths_and_empty_input_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="no rows"):
        bootstrap([])


# --- tests -------------------------------------------------------------------------------------


@given(marks)
def test_mcnemar_equals_the_binomial_test_on_the_discordant_pairs(pairs):
    first, second = np.array(pairs).T
    found = mcnemar(first, second)
    b, c = found.only_first, found.only_second
    expected = scipy_stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert found.p_value == pytest.approx(expected)
    assert mcnemar(second, first).p_value == found.p_value


def test_mcnemar_survives_thousands_of_discordant_pairs():
    first = np.repeat([1, 0], [6000, 5000])
    assert 0 < mcnemar(first, 1 - first).p_value < 1e-20


def test_holm_matches_a_worked_example():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=6))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    for a, b in zip(sorted(p_values, key=p_values.get), list(adjusted), strict=True):
        assert adjusted[a] >= p_values[a] - 1e-15
        assert adjusted[b] <= 1.0
    order = sorted(p_values, key=p_values.get)
    assert [adjusted[n] for n in order] == sorted(adjusted.values())


# --- curves ------------------------------------------------------------------------------------


@given(st.lists(finite, max_size=30))
def test_isotonic_regression_equals_the_reference(values):
    if values:
        assert isotonic(values) == pytest.approx(isotonic_regression(values), abs=1e-9)
    else:
        assert len(isotonic(values)) == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_frontier_dominates_everything_and_nothing_in_it_is_dominated(points):
    cost, quality = np.array(points, float).T
    kept = pareto_frontier(cost, quality)
    assert (np.diff(cost[kept]) > 0).all()
    assert (np.diff(quality[kept]) > 0).all()
    for c, q in points:
        assert any(cost[k] <= c and quality[k] >= q for k in kept)


BEST = Point(0.80, 10.0, "best")
CURVE = [Point(0.70, 1.0), Point(0.79, 3.0), Point(0.81, 6.0), Point(0.85, 14.0)]


def test_cost_save_is_the_cheapest_way_to_the_target():
    assert cost_save(CURVE, BEST) == pytest.approx(0.4)
    assert cost_save(CURVE, BEST, 0.98) == pytest.approx(0.7)
    assert cost_save(CURVE, BEST, 0.5) == pytest.approx(0.9)
    assert cost_save(CURVE[:2], BEST) is None
    assert cost_save(CURVE[3:], BEST) == pytest.approx(-0.4)


def test_targets_are_met_by_equality_despite_rounding():
    assert cost_save([Point(0.1 + 0.2, 1.0)], Point(0.3, 2.0)) == 0.5
    assert cost_save([Point(0.3, 1.0)], Point(0.1 + 0.2, 2.0)) == 0.5


def test_points_are_found_by_accuracy_and_by_cost():
    assert cheapest_at(CURVE, 0.8) == CURVE[2]
    assert best_within(CURVE, 6.0) == CURVE[2]
    assert best_within(CURVE, 0.5) is None


def test_gains_and_utility():
    assert perf_gain(CURVE, BEST) == pytest.approx(0.85 / 0.80 - 1)
    assert cost_utility(0.8, 0.002) == pytest.approx(0.4)
    assert cost_utility(0.8, 0.0) is None
    assert saving(CURVE[0], BEST) == pytest.approx(0.9)
    assert math.isnan(saving(CURVE[0], Point(0.8, 0.0)))


def test_the_gap_to_the_frontier_is_zero_on_it_and_counts_accuracy_below_it():
    assert frontier_gap(CURVE, CURVE) == 0.0
    assert frontier_gap([Point(0.70, 3.0), Point(0.81, 6.0)], CURVE) == pytest.approx(0.045)
