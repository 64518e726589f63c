"""Batched sampling from a small causal LM with a KV cache.

A prompt is a root and what follows it. Equal roots are prefilled once and shared: the samples of
a group, and their later turns, all start from the same request. Finished rows leave the batch,
and every row draws from a random stream of its own, so a sample does not depend on which other
requests it happened to be batched with (up to rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, Qwen2ForCausalLM

from xrouter.policies.grammar import Grammar

CHUNK = 512


@dataclass(frozen=True, slots=True)
class Sample:
    """Sampled ids, the end token included when it was produced, their log-probabilities, and the
    ids of the allowed sets they were drawn from (empty without a grammar)."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    choices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A shared root, this row's own tail, the key of its random stream, and what it may say.

    Within one call either all prompts have a grammar or none has. A grammar is used up.
    """

    root: tuple[int, ...]
    tail: tuple[int, ...] = ()
    seed: tuple[int, ...] = (0,)
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("prompt.root is empty; it needs at least one token")


class Engine:
    """Samples continuations; ``greedy`` takes the most likely token instead."""

    def __init__(
        self, model: Qwen2ForCausalLM, *, pad_id: int, end_id: int, max_new_tokens: int = 40
    ) -> None:
        self.model = model
        self.pad_id = pad_id
        self.end_id = end_id
        self.max_new_tokens = max_new_tokens

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], *, greedy: bool = False) -> list[Sample]:
        """One sample per prompt, in order."""
        was_training = self.model.training
        self.model.eval()
        out: list[Sample | None] = [None] * len(prompts)
        for continued in (False, True):
            order = [i for i, p in enumerate(prompts) if bool(p.tail) is continued]
            order.sort(key=lambda i: (len(prompts[i].tail), prompts[i].root))
            for start in range(0, len(order), CHUNK):
                rows = order[start : start + CHUNK]
                samples = self._chunk([prompts[i] for i in rows], greedy)
                for i, sample in zip(rows, samples, strict=True):
                    out[i] = sample
        self.model.train(was_training)
        return [s for s in out if s is not None]

    def _chunk(self, prompts: list[Prompt], greedy: bool) -> list[Sample]:
        n, steps = len(prompts), self.max_new_tokens
        device = self.model.device
        uniform = torch.from_numpy(
            np.stack([np.random.default_rng(p.seed).random(steps) for p in prompts])
        ).to(device, torch.float32)
        cache, mask, logits = self._prefill(prompts)
        ids = torch.full((n, steps), self.pad_id, device=device)
        logprobs = torch.zeros((n, steps), device=device)
        choices: list[list[int]] = [[] for _ in prompts]
        rows = torch.arange(n, device=device)
        for step in range(steps):
            logits = _guide(logits, rows.tolist(), prompts, choices)
            token, logprob = _draw(logits, uniform[rows, step], greedy)
            _advance(token.tolist(), rows.tolist(), prompts)
            ids[rows, step], logprobs[rows, step] = token, logprob
            going = token != self.end_id
            if step == steps - 1 or not bool(going.any()):
                break
            if float(going.float().mean()) < 0.75:
                keep = going.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                rows, mask, token = rows[keep], mask[keep], token[keep]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            positions = mask.sum(1, keepdim=True) - 1
            logits = self.model(
                token.unsqueeze(1),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        return _collect(ids, logprobs, choices, self.end_id)

    def _prefill(self, prompts: list[Prompt]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """(cache, mask, logits of the next token); the prompts all have a tail, or none has."""
        unique: dict[tuple[int, ...], int] = {}
        rows = torch.tensor([unique.setdefault(p.root, len(unique)) for p in prompts])
        rows = rows.to(self.model.device)
        cache = DynamicCache(config=self.model.config)
        mask, logits = self._extend(cache, list(unique), None)
        cache.batch_select_indices(rows)
        mask, logits = mask[rows], logits[rows]
        if prompts[0].tail:
            mask, logits = self._extend(cache, [p.tail for p in prompts], mask)
        return cache, mask, logits

    def _extend(
        self, cache: DynamicCache, rows: Sequence[Sequence[int]], past: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append rows, padded left, to the cache; returns (whole mask, last logits)."""
        ids, mask = left_pad(rows, self.pad_id)
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        whole = mask if past is None else torch.cat([past, mask], dim=1)
        out = self.model(
            ids,
            attention_mask=whole,
            position_ids=positions_of(whole)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return whole, out.logits[:, -1]


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask), both [len(rows), longest]; padding stands on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(r)) + list(r) for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Position ids for a padded mask; padding gets 0."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _draw(
    logits: torch.Tensor, uniform: torch.Tensor, greedy: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF sampling at temperature 1; log-probabilities are of the sampled tokens."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    if greedy:
        token = logprobs.argmax(-1)
    else:
        cdf = logprobs.exp().cumsum(-1)
        point = (uniform * cdf[:, -1]).unsqueeze(1)
        token = torch.searchsorted(cdf, point, right=True).squeeze(1)
        token = token.clamp(max=logits.shape[-1] - 1)
    return token, logprobs.gather(1, token.unsqueeze(1)).squeeze(1)


def _guide(
    logits: torch.Tensor, rows: list[int], prompts: list[Prompt], choices: list[list[int]]
) -> torch.Tensor:
    """Mask what the grammars do not allow; a row that has ended may pad with anything."""
    grammars = [prompts[i].grammar for i in rows]
    if grammars[0] is None:
        return logits
    ids = []
    for i, grammar in zip(rows, grammars, strict=True):
        assert grammar is not None
        ids.append(grammar.choice())
        choices[i].append(ids[-1])
    masks = grammars[0].table.masks(torch.tensor(ids, device=logits.device))
    return logits.masked_fill(~masks, float("-inf"))


def _advance(tokens: list[int], rows: list[int], prompts: list[Prompt]) -> None:
    for token, i in zip(tokens, rows, strict=True):
        if (grammar := prompts[i].grammar) is not None:
            grammar.advance(token)


def _collect(
    ids: torch.Tensor, logprobs: torch.Tensor, choices: list[list[int]], end_id: int
) -> list[Sample]:
    out = []
    for row, lp, chosen in zip(ids.tolist(), logprobs.tolist(), choices, strict=True):
        stop = row.index(end_id) + 1 if end_id in row else len(row)
        out.append(Sample(tuple(row[:stop]), tuple(lp[:stop]), tuple(chosen[:stop])))
    return out
