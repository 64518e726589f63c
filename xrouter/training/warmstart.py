"""Warm start: supervised learning of format and variety, never of what is right.

Demonstrations are random valid strategies, run through the real orchestrator: how many models
to call, which, whether to ask again, which answer to select, all drawn without looking at
outcomes. After it the router writes well-formed turns of every kind about equally often, and
reinforcement learning has to find out which of them pay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Qwen2ForCausalLM

from xrouter.episode import Decision, State, Task, TokenTrace
from xrouter.policies.codec import Codec, View
from xrouter.tools import parse_tool_calls
from xrouter.training.rollout import Batch, TokenSequence, make_batch, own_logprobs

DIRECT_REPLIES = (
    "Here is what I can say without asking anyone.",
    "I would rather answer this one myself.",
    "Short answer from me: I am not sure.",
)


@dataclass(frozen=True, slots=True)
class StrategyMix:
    """Probabilities of the random strategies.

    ``direct``: answer without a call. ``parallel[k]``: call k + 1 models at once.
    ``select_now``: select in the same turn as the calls. ``stop``: select, rather than call
    again, on a later turn.
    """

    direct: float = 0.12
    parallel: tuple[float, ...] = (0.4, 0.4, 0.2)
    select_now: float = 0.2
    stop: float = 0.5


class RandomStrategies:
    """A policy that draws its strategy at random and writes it in the codec's tokens."""

    name = "random-strategies"

    def __init__(
        self, codec: Codec, reply: Callable[[Task], str], mix: StrategyMix | None = None
    ) -> None:
        self.codec = codec
        self.reply = reply
        self.mix = mix or StrategyMix()

    async def decide(self, state: State) -> Decision:
        rng = np.random.default_rng([state.seed, len(state.turns)])
        view = self.codec.view(state.pool)
        ids = self._action(state, view, rng)
        content, calls, errors = parse_tool_calls(self.codec.decode(ids, state.pool))
        root, tail = self.codec.encode(state)
        prompt = (*root, *tail)
        trace = TokenTrace(prompt, tuple(ids), (0.0,) * len(ids))
        return Decision(content, calls, errors, len(prompt), len(ids), 0.0, trace)

    def _action(self, state: State, view: View, rng: np.random.Generator) -> list[int]:
        mix = self.mix
        answered = sorted({c.model for c in state.completions if view.slot(c.model)})
        if not state.turns and rng.random() < mix.direct and state.mode == "agent":
            return self.codec.encode_action(view, [], text=self.reply(state.task))
        last = state.turns_left <= 1 and bool(state.turns)
        if answered and (last or rng.random() < mix.stop):
            return self.codec.encode_action(view, [], select=str(rng.choice(answered)))
        fresh = [m for m in view.ids if m not in answered] or list(view.ids)
        if state.mode == "simple":
            return self.codec.encode_action(view, [str(rng.choice(fresh))])
        count = 1 + int(rng.choice(len(mix.parallel), p=np.array(mix.parallel)))
        calls = [str(m) for m in rng.permutation(fresh)[:count]]
        select = str(rng.choice(calls)) if rng.random() < mix.select_now else None
        return self.codec.encode_action(view, calls, select=select)


def neutral_reply(task: Task) -> str:
    """A direct answer that knows nothing of the task: varied, and right only for small talk."""
    return DIRECT_REPLIES[sum(task.id.encode()) % len(DIRECT_REPLIES)]


def fit(
    model: Qwen2ForCausalLM,
    sequences: Sequence[TokenSequence],
    *,
    pad_id: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[float, float], None] = lambda done, loss: None,
) -> float:
    """Cross-entropy on the demonstrations' own tokens, cosine learning rate; returns the mean
    loss (nats per token) of the last tenth of the updates. ``progress(fraction, loss)``."""
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    updates = epochs * max(1, len(sequences) // batch_size)
    losses: list[float] = []
    model.train()
    for update in range(updates):
        if update * batch_size % len(sequences) < batch_size:
            order = rng.permutation(len(sequences))
        start = update * batch_size % len(sequences)
        rows = [sequences[i] for i in order[start : start + batch_size]]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(update, updates)
        loss = _update(model, optimizer, make_batch(rows, [[0.0]] * len(rows), pad_id))
        losses.append(loss)
        progress((update + 1) / updates, loss)
    return float(np.mean(losses[-max(1, updates // 10) :]))


def _schedule(update: int, updates: int, warmup: int = 20) -> float:
    return min(1.0, (update + 1) / warmup) * (0.55 + 0.45 * float(np.cos(np.pi * update / updates)))


def _update(model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    logp, _ = own_logprobs(model, batch.to(model.device))
    loss = -logp.mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())
