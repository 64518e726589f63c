"""From episodes to token batches: masks over the router's own tokens, credit per turn.

An episode is one token sequence: prompt, turn, observation, turn, … Loss masks cover exactly
what the router wrote. The samples of a group share their prompt, so a batch stores each prompt
once: its keys and values are computed once, with gradients, and expanded to the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen2ForCausalLM

from xrouter.episode import Episode, Task
from xrouter.orchestrator import Orchestrator, Policy
from xrouter.policies.engine import left_pad, positions_of
from xrouter.policies.grammar import ChoiceTable
from xrouter.verifiers import score

NEVER = -1e9


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to roll out. Jobs of equal ``group`` share task, pool and cost weight."""

    task: Task
    pool: tuple[str, ...]
    cost_weight: float
    group: int
    seed: int


async def roll_out(
    jobs: Sequence[Job], policy: Policy, orchestrator: Orchestrator
) -> list[Episode]:
    """Run all jobs concurrently and score their answers; order is kept."""

    async def one(job: Job) -> Episode:
        episode = await orchestrator.run(
            job.task, policy, pool=job.pool, cost_weight=job.cost_weight, seed=job.seed
        )
        return replace(episode, quality=score(job.task, episode.answer))

    return list(await asyncio.gather(*(one(job) for job in jobs)))


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """One episode as tokens. All tuples have equal length, except ``prompt``.

    ``turn`` is the router turn a token belongs to, −1 for observations; ``logprobs`` and
    ``choices`` (see :class:`xrouter.episode.TokenTrace`) are 0 there.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    turn: tuple[int, ...]
    logprobs: tuple[float, ...]
    choices: tuple[int, ...]

    @property
    def own_tokens(self) -> int:
        return sum(t >= 0 for t in self.turn)


def token_sequence(episode: Episode) -> TokenSequence | None:
    """The token sequence of an episode, or None where the router wrote nothing.

    Raises ValueError when a turn's context does not extend the one before: such an episode
    could not be trained on without a wrong mask.
    """
    traces = [t.decision.trace for t in episode.turns if t.decision.trace is not None]
    if not traces:
        return None
    prompt = traces[0].prompt_ids
    tokens: list[int] = []
    turn: list[int] = []
    logprobs: list[float] = []
    choices: list[int] = []
    for k, trace in enumerate(traces):
        context = (*prompt, *tokens)
        if trace.prompt_ids[: len(context)] != context:
            raise ValueError(f"episode {episode.task_id!r}: turn {k} does not extend turn {k - 1}")
        observed = trace.prompt_ids[len(context) :]
        tokens += [*observed, *trace.response_ids]
        turn += [-1] * len(observed) + [k] * len(trace.response_ids)
        logprobs += [0.0] * len(observed) + list(trace.logprobs)
        allowed = trace.choices or (0,) * len(trace.response_ids)
        choices += [0] * len(observed) + list(allowed)
    return TokenSequence(prompt, tuple(tokens), tuple(turn), tuple(logprobs), tuple(choices))


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences with shared prompts, padded.

    ``prompts``/``prompt_mask`` [U, P] hold each distinct prompt without its last token, padded
    left; ``tokens``/``token_mask`` [R, S] hold that last token and all that follows, padded
    right; ``prompt_of`` [R] maps rows to prompts. ``mask`` [R, S−1] marks the positions whose
    *next* token the router wrote; ``old_logp``, ``advantages`` and ``choices`` [R, S−1] belong
    to it.
    """

    prompts: Tensor
    prompt_mask: Tensor
    tokens: Tensor
    token_mask: Tensor
    prompt_of: Tensor
    mask: Tensor
    old_logp: Tensor
    advantages: Tensor
    choices: Tensor

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(getattr(self, f).to(device) for f in self.__dataclass_fields__))


def make_batch(
    sequences: Sequence[TokenSequence], advantages: Sequence[Sequence[float]], pad_id: int
) -> Batch:
    """Pad sequences into a :class:`Batch`; ``advantages[i][k]`` is for turn k of sequence i."""
    unique: dict[tuple[int, ...], int] = {}
    prompt_of = [unique.setdefault(s.prompt, len(unique)) for s in sequences]
    prompts, prompt_mask = left_pad([p[:-1] for p in unique], pad_id)
    width = 1 + max(len(s.tokens) for s in sequences)

    def right(rows: Iterable[Sequence[float]], fill: float, size: int) -> Tensor:
        return torch.tensor([[*r, *[fill] * (size - len(r))] for r in rows])

    tokens = right(((s.prompt[-1], *s.tokens) for s in sequences), pad_id, width).long()
    token_mask = right(([1] * (1 + len(s.tokens)) for s in sequences), 0, width).long()
    turn = right((s.turn for s in sequences), -1, width - 1).long()
    turns = max(1, int(turn.max()) + 1, *map(len, advantages))
    per_turn = right(advantages, 0.0, turns).float()
    own = turn >= 0
    return Batch(
        prompts=prompts,
        prompt_mask=prompt_mask,
        tokens=tokens,
        token_mask=token_mask,
        prompt_of=torch.tensor(prompt_of),
        mask=own,
        old_logp=right((s.logprobs for s in sequences), 0.0, width - 1).float(),
        advantages=per_turn.gather(1, turn.clamp(min=0)) * own,
        choices=right((s.choices for s in sequences), 0, width - 1).long(),
    )


def own_logprobs(
    model: Qwen2ForCausalLM, batch: Batch, table: ChoiceTable | None = None
) -> tuple[Tensor, Tensor]:
    """(log-probabilities, entropies in nats) of the router's own tokens, flat in ``mask`` order.

    With ``table``, of the distribution restricted to what guided decoding allowed. Only the
    positions that count go through the output layer.
    """
    cache = DynamicCache(config=model.config)
    backbone = model.model
    if batch.prompts.shape[1]:
        backbone(
            batch.prompts,
            attention_mask=batch.prompt_mask,
            position_ids=positions_of(batch.prompt_mask),
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_select_indices(batch.prompt_of)
    mask = torch.cat([batch.prompt_mask[batch.prompt_of], batch.token_mask], dim=1)
    positions = positions_of(mask)[:, batch.prompts.shape[1] :]
    hidden = backbone(
        batch.tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][batch.mask]).float()
    if table is not None:
        logits = logits.masked_fill(~table.masks(batch.choices[batch.mask]), NEVER)
    logp = torch.log_softmax(logits, dim=-1)
    targets = batch.tokens[:, 1:][batch.mask]
    entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, targets.unsqueeze(1)).squeeze(1), entropy
