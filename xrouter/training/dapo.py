"""DAPO as pure tensor functions (arXiv 2503.14476), with credit per outcome or per turn.

Loss, for tokens t of samples i with ratio r = exp(logp − logp_old)::

    L = − Σᵢ Σₜ min(r·Â, clip(r, 1 − ε_low, 1 + ε_high)·Â) / Σᵢ |oᵢ|

The minimum is taken for both signs of Â; where Â < 0, dual clip bounds the loss at c·|Â|. The
denominator is the token count of the *whole* batch, so that micro-batches add up to the same
gradient whatever their split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]


@dataclass(frozen=True, slots=True)
class ClipStats:
    """Sums over tokens: clipped low (r too small), clipped high, and approximate KL(old‖new)."""

    low: float
    high: float
    approx_kl: float


def group_advantages(
    rewards: Tensor,
    groups: Tensor,
    *,
    scale: Scale = "group",
    strata: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Â = (R − mean of its group) / scale.

    ``rewards`` [B] float, ``groups`` [B] integer ids; returns [B]. ``scale`` is the standard
    deviation of the group (unbiased, as in GRPO), that of all centred rewards of the same
    stratum, or 1. ``strata`` [B], by default one for all, keeps rewards of different size apart:
    here those of different cost weights. A group of one gets its reward as it is, as there is
    nothing to compare it with.
    """
    centred, _, _ = _centre(rewards, groups)
    return centred / _spread(centred, groups, scale, strata, eps)


def _spread(
    centred: Tensor, groups: Tensor, scale: Scale, strata: Tensor | None, eps: float
) -> Tensor:
    """What centred rewards [B] are divided by: standard deviation within ``scale``, plus eps."""
    if scale == "none":
        return torch.ones_like(centred)
    if scale == "batch":
        groups = torch.zeros_like(groups) if strata is None else strata
    _, index = torch.unique(groups, return_inverse=True)
    size = torch.zeros(int(index.max()) + 1, dtype=centred.dtype)
    size = size.index_add(0, index, torch.ones_like(centred))
    variance = torch.zeros_like(size).index_add(0, index, centred**2) / (size - 1).clamp(min=1)
    std = torch.where(size > 1, variance.sqrt(), torch.ones_like(size))
    return std[index] + eps


def _centre(values: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(values minus group mean, group sizes, group index); single values keep their value."""
    _, index = torch.unique(groups, return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    size = torch.zeros(count, dtype=values.dtype).index_add_(0, index, torch.ones_like(values))
    total = torch.zeros(count, dtype=values.dtype).index_add_(0, index, values)
    mean = torch.where(size > 1, total / size, torch.zeros_like(total))
    return values - mean[index], size, index


def turn_advantages(
    returns: Tensor,
    alive: Tensor,
    groups: Tensor,
    *,
    scale: Scale = "group",
    strata: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Advantage per turn: the return-to-go against the group's mean at the same turn.

    The return of a turn is the reward with only the cost that this *and later turns* cause: what
    earlier turns spent is sunk. ``returns`` [B, T], ``alive`` [B, T] bool (the episode had that
    turn), ``groups`` [B]. A turn that only one member of the group reached is compared with
    nothing and gets 0. The scale is that of turn 0 (see :func:`group_advantages`), so that later
    turns keep their size relative to the outcome.
    """
    out = torch.zeros_like(returns)
    for t in range(returns.shape[1]):
        rows = alive[:, t].nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        centred, size, index = _centre(returns[rows, t], groups[rows])
        out[rows, t] = torch.where(size[index] > 1, centred, torch.zeros_like(centred))
    first, _, _ = _centre(returns[:, 0], groups)
    return out / _spread(first, groups, scale, strata, eps)[:, None]


def informative_groups(rewards: Tensor, groups: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Dynamic sampling: bool [B], True where the group's final rewards have spread.

    The spread is that of the *final* reward: a group that is all correct at different cost
    still teaches thrift, and is kept.
    """
    centred, size, index = _centre(rewards, groups)
    spread = torch.zeros_like(size).scatter_reduce(0, index, centred.abs(), "amax")
    return (spread > eps)[index] & (size > 1)[index]


def soft_overlong_penalty(lengths: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """0 up to ``max_length − buffer``, then linear down to −1 at ``max_length`` and beyond.

    ``lengths`` [B] in tokens; returns [B] float.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"overlong buffer={buffer}; must lie in 1..max_length={max_length}")
    over = lengths.float() - (max_length - buffer)
    return -(over / buffer).clamp(0.0, 1.0)


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    token_count: float,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 10.0,
) -> tuple[Tensor, ClipStats]:
    """Clipped surrogate, summed over the router's own tokens and divided by ``token_count``.

    ``logp``, ``old_logp``, ``advantages``, ``mask`` share one shape. ``token_count`` is the
    number of masked-in tokens of the whole batch, not of this micro-batch.
    """
    if dual_clip <= 1.0:
        raise ValueError(f"dual_clip={dual_clip}; must exceed 1")
    mask = mask.to(logp.dtype)
    log_ratio = (logp - old_logp).clamp(-20.0, 20.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    floor = torch.where(advantages < 0, dual_clip * advantages, surrogate)
    loss = -(torch.maximum(surrogate, floor) * mask).sum() / token_count
    with torch.no_grad():
        low = ((ratio < 1 - clip_low) & (advantages < 0)).to(mask.dtype) * mask
        high = ((ratio > 1 + clip_high) & (advantages > 0)).to(mask.dtype) * mask
        stats = ClipStats(float(low.sum()), float(high.sum()), float((-log_ratio * mask).sum()))
    return loss, stats
