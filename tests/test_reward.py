import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrouter.reward import Reward, RewardConfig, reward

REFERENCE = RewardConfig(reference_usd=0.004)
RAW = RewardConfig(normalization="raw")
ORIGINAL = RewardConfig(form="gated", normalization="raw", cap=0.8, gate=1.0)

money = st.floats(0, 1e3)


@pytest.mark.parametrize(
    ("config", "quality", "usd", "weight", "total"),
    [
        (REFERENCE, 1.0, 0.004, 0.2, 0.8),
        (REFERENCE, 0.0, 0.002, 0.2, -0.1),
        (REFERENCE, 0.5, 0.0, 5.0, 0.5),
        (RAW, 1.0, 0.005, 3.0, 0.985),
        (RewardConfig(normalization="log", reference_usd=0.004), 1.0, 0.012, 0.1, 0.8),
        (RewardConfig(reference_usd=0.004, cap=0.5), 1.0, 0.4, 0.2, 0.5),
        (RewardConfig(form="gated", reference_usd=0.004), 0.5, 0.008, 0.2, 0.3),
        (RewardConfig(form="gated", reference_usd=0.004, gate=2.0), 1.0, 0.004, 0.2, 1.8),
        (ORIGINAL, 1.0, 0.005, 3.0, 0.985),
        (ORIGINAL, 1.0, 10.0, 3.0, 0.2),
        (ORIGINAL, 0.0, 10.0, 3.0, 0.0),
    ],
)
def test_rewards_equal_the_values_computed_by_hand(config, quality, usd, weight, total):
    assert reward(quality, usd, weight, config).total == pytest.approx(total)


def test_the_parts_explain_the_total():
    got = reward(0.75, 0.006, 0.2, REFERENCE)
    assert got == Reward(pytest.approx(0.45), 0.75, 0.006, pytest.approx(1.5), pytest.approx(0.3))


def test_raw_dollars_hardly_penalise_a_typical_query_while_a_reference_cost_does():
    """At $0.005 a query the original's penalty is 0.015 of a gate of 1: lost in the noise of a
    group. In units of a reference query the same money tells cheap from dear."""
    cheap, dear = 0.0003, 0.005
    assert reward(1.0, dear, 3.0, ORIGINAL).penalty < 0.02
    raw_gap = reward(1.0, cheap, 3.0, ORIGINAL).total - reward(1.0, dear, 3.0, ORIGINAL).total
    gap = reward(1.0, cheap, 0.3, REFERENCE).total - reward(1.0, dear, 0.3, REFERENCE).total
    assert raw_gap < 0.02
    assert gap > 0.3


def test_the_linear_form_charges_wrong_answers_and_the_gated_form_does_not():
    gated = RewardConfig(form="gated", reference_usd=0.004)
    assert reward(0.0, 0.004, 0.2, REFERENCE).total < 0
    assert reward(0.0, 0.004, 0.2, gated).total == 0


@given(st.floats(0, 1), money, money, st.floats(0, 10), st.sampled_from([REFERENCE, RAW, ORIGINAL]))
def test_more_money_never_earns_more(quality, one, other, weight, config):
    low, high = sorted((one, other))
    assert reward(quality, low, weight, config).total >= reward(quality, high, weight, config).total


@given(st.floats(0, 1), money)
def test_without_cost_weight_the_reward_is_the_quality(quality, usd):
    for config in (REFERENCE, RAW, ORIGINAL):
        assert reward(quality, usd, 0.0, config).total == pytest.approx(quality)


@given(money)
def test_log_normalisation_is_zero_at_zero_and_one_at_the_reference(usd):
    config = RewardConfig(normalization="log", reference_usd=0.004)
    assert config.normalize(0.0) == 0
    assert config.normalize(0.004) == 1
    assert config.normalize(usd) <= REFERENCE.normalize(usd) + 1 or usd < 0.004


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"form": "cubic"}, "reward.form='cubic'"),
        ({"normalization": "euro"}, "reward.normalization='euro'"),
        ({}, "reward.reference_usd=None"),
        ({"reference_usd": 0.0}, "reward.reference_usd=0.0"),
        ({"normalization": "log", "reference_usd": -1.0}, "reward.reference_usd=-1.0"),
        ({"reference_usd": 1.0, "cap": 0.0}, "reward.cap=0.0"),
    ],
)
def test_an_impossible_config_is_refused_by_field(fields, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**fields)


@pytest.mark.parametrize(
    ("quality", "usd", "weight"),
    [
        (-0.1, 0, 0),
        (1.1, 0, 0),
        (math.nan, 0, 0),
        (1, -1, 0),
        (1, math.nan, 0),
        (1, math.inf, 0),
        (1, 0, -1),
        (1, 0, math.nan),
    ],
)
def test_values_that_make_no_sense_are_refused(quality, usd, weight):
    with pytest.raises(ValueError, match="must"):
        reward(quality, usd, weight, REFERENCE)
