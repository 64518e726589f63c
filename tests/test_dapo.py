"""The DAPO functions against hand-computed values, and the traps others fell into."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch

from xrouter.training import dapo

LOSS = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0}


def loss_of(ratio: float, advantage: float, **kwargs: float) -> tuple[float, float]:
    """(loss, d loss / d logp) of a single token at the given ratio."""
    logp = torch.tensor([math.log(ratio)], requires_grad=True)
    options = {**LOSS, **kwargs}
    loss, _ = dapo.policy_loss(
        logp, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), token_count=1, **options
    )
    loss.backward()
    return float(loss.detach()), float(logp.grad[0])


def test_group_advantage_matches_the_hand_computed_value() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.5])
    got = dapo.group_advantages(rewards, torch.tensor([7, 7, 3, 3]), eps=0.0)
    root = 1 / math.sqrt(2)
    assert got[:2].tolist() == pytest.approx([root, -root])


def test_group_without_spread_gets_zero_advantage() -> None:
    got = dapo.group_advantages(torch.tensor([0.5, 0.5]), torch.tensor([0, 0]))
    assert got.tolist() == [0.0, 0.0]


def test_advantage_scales_agree_in_sign_and_order() -> None:
    rewards = torch.tensor([0.9, 0.1, 0.2, 1.0, 0.4, 0.3])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    by_scale = [dapo.group_advantages(rewards, groups, scale=s) for s in ("group", "batch", "none")]
    for other in by_scale[1:]:
        assert torch.equal(by_scale[0].sign(), other.sign())
    assert by_scale[2].tolist() == pytest.approx([0.5, -0.3, -0.2, 13 / 30, -1 / 6, -4 / 15])


def test_strata_keep_large_penalties_from_drowning_small_ones() -> None:
    rewards = torch.tensor([0.01, 0.0, 10.0, 0.0])
    groups, strata = torch.tensor([0, 0, 1, 1]), torch.tensor([0.1, 0.1, 2.0, 2.0])
    mixed = dapo.group_advantages(rewards, groups, scale="batch")
    apart = dapo.group_advantages(rewards, groups, scale="batch", strata=strata, eps=0.0)
    assert mixed[0].abs() < 0.01
    assert apart[0] == pytest.approx(float(apart[2]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 1.0, -1.0, -1.0),
        (1.28, 1.0, -1.28, -1.28),
        (1.5, 1.0, -1.28, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),
        (1.5, -1.0, 1.5, 1.5),
        (20.0, -1.0, 10.0, 0.0),
    ],
)
def test_clip_takes_the_minimum_for_both_signs(
    ratio: float, advantage: float, loss: float, gradient: float
) -> None:
    got = loss_of(ratio, advantage)
    assert got == (pytest.approx(loss, abs=1e-5), pytest.approx(gradient, abs=1e-5))


def test_micro_batch_losses_over_the_global_count_sum_to_the_full_loss() -> None:
    torch.manual_seed(0)
    logp, old, adv = torch.randn(3, 50)
    mask = (torch.rand(50) < 0.6).float()
    total = float(mask.sum())
    whole, _ = dapo.policy_loss(logp, old, adv, mask, token_count=total, **LOSS)
    cuts = [slice(0, 7), slice(7, 40), slice(40, 50)]
    parts = [
        dapo.policy_loss(logp[c], old[c], adv[c], mask[c], token_count=total, **LOSS)[0]
        for c in cuts
    ]
    means = [
        dapo.policy_loss(logp[c], old[c], adv[c], mask[c], token_count=mask[c].sum(), **LOSS)[0]
        for c in cuts
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), abs=1e-5)
    assert abs(float(sum(means)) / 3 - float(whole)) > 1e-3


def test_masked_tokens_have_neither_loss_nor_gradient() -> None:
    logp = torch.tensor([0.2, -0.2, 0.1], requires_grad=True)
    mask = torch.tensor([1.0, 0.0, 1.0])
    loss, _ = dapo.policy_loss(logp, torch.zeros(3), torch.ones(3), mask, token_count=2.0, **LOSS)
    loss.backward()
    assert logp.grad[1] == 0.0
    assert logp.grad[0] != 0.0


def test_clip_statistics_count_tokens_beyond_each_bound() -> None:
    logp = torch.tensor([1.5, 0.5, 1.0, 1.5]).log()
    adv = torch.tensor([1.0, -1.0, 1.0, -1.0])
    _, stats = dapo.policy_loss(logp, torch.zeros(4), adv, torch.ones(4), token_count=4, **LOSS)
    assert (stats.low, stats.high) == (1.0, 1.0)


def test_dual_clip_at_or_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dual_clip=1"):
        loss_of(1.0, 1.0, dual_clip=1.0)


def test_dynamic_sampling_keeps_all_correct_groups_of_different_cost() -> None:
    rewards = torch.tensor([0.99, 0.90, 1.0, 1.0, 0.0, 0.0])
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    assert dapo.informative_groups(rewards, groups).tolist() == [True, True] + [False] * 4


def test_dynamic_sampling_drops_groups_of_one() -> None:
    assert dapo.informative_groups(torch.tensor([0.7]), torch.tensor([0])).tolist() == [False]


def test_soft_overlong_is_zero_then_linear_then_minus_one() -> None:
    lengths = torch.tensor([1, 60, 65, 70, 80, 500])
    got = dapo.soft_overlong_penalty(lengths, max_length=80, buffer=20)
    assert got.tolist() == pytest.approx([0.0, 0.0, -0.25, -0.5, -1.0, -1.0])


def test_turn_advantages_compare_equal_turns_only() -> None:
    returns = torch.tensor([[0.8, 0.9], [0.6, 0.7], [0.1, 0.0]])
    alive = torch.tensor([[True, True], [True, True], [True, False]])
    got = dapo.turn_advantages(returns, alive, torch.zeros(3), scale="none")
    assert got[:, 0].tolist() == pytest.approx([0.3, 0.1, -0.4])
    assert got[:, 1].tolist() == pytest.approx([0.1, -0.1, 0.0])


def test_a_turn_that_one_member_reached_teaches_nothing() -> None:
    returns = torch.tensor([[0.8, 0.9], [0.6, 0.0]])
    alive = torch.tensor([[True, True], [True, False]])
    got = dapo.turn_advantages(returns, alive, torch.zeros(2))
    assert got[0, 1] == 0.0


def test_turn_and_outcome_credit_agree_on_single_turn_episodes() -> None:
    rewards = torch.tensor([0.9, 0.2, 0.4, 0.5], dtype=torch.float64)
    groups = torch.tensor([0, 0, 1, 1])
    for scale in ("group", "batch", "none"):
        one = dapo.group_advantages(rewards, groups, scale=scale)
        alive = torch.ones(4, 1, dtype=torch.bool)
        many = dapo.turn_advantages(rewards[:, None], alive, groups, scale=scale)
        assert torch.allclose(one, many[:, 0])


@pytest.mark.skipif(importlib.util.find_spec("verl") is None, reason="verl is not installed")
def test_loss_and_advantage_equal_those_of_verl() -> None:
    from omegaconf import OmegaConf
    from verl.trainer.ppo import core_algos

    torch.manual_seed(1)
    shape = (16, 24)
    old, adv = torch.randn(shape) - 2, torch.randn(shape)
    logp = old + 0.7 * torch.randn(shape)
    mask = (torch.rand(shape) < 0.7).float()
    config = OmegaConf.create(
        {
            "clip_ratio": 0.2,
            "clip_ratio_low": 0.2,
            "clip_ratio_high": 0.28,
            "clip_ratio_c": 10.0,
            "loss_agg_mode": "token-mean",
            "policy_loss": {"loss_mode": "vanilla"},
            "global_batch_info": {},
        }
    )
    theirs = core_algos.compute_policy_loss_vanilla(
        old, logp, adv, mask, loss_agg_mode="token-mean", config=config
    )[0]
    ours, _ = dapo.policy_loss(logp, old, adv, mask, token_count=float(mask.sum()), **LOSS)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)

    rewards = torch.rand(16)
    groups = torch.arange(16) // 4
    token_rewards = torch.zeros(shape)
    token_rewards[:, 0] = rewards
    full = torch.ones(shape)
    theirs_adv, _ = core_algos.compute_grpo_outcome_advantage(
        token_rewards, full, groups.numpy(), epsilon=1e-6
    )
    assert torch.allclose(dapo.group_advantages(rewards, groups), theirs_adv[:, 0], atol=1e-6)
