"""Warm start: supervised learning of format and variety, never of what is right.

Demonstrations are random valid strategies, run through the real orchestrator: how many models
to call, which, when to stop, which answer to select, all drawn without looking at what is right.
After it the router writes well-formed turns of every kind, and reinforcement learning has to find
out which of them pay, for which request, pool and cost weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Qwen2ForCausalLM

from xrouter.episode import Decision, State, Task, TokenTrace, answer_groups
from xrouter.policies.codec import BEST, Codec, View, nearest_weight
from xrouter.policies.grammar import ChoiceTable
from xrouter.tools import parse_tool_calls
from xrouter.training.rollout import Batch, TokenSequence, make_batch, own_logprobs

DIRECT_REPLIES = (
    "Here is what I can say without asking anyone.",
    "I would rather answer this one myself.",
    "Short answer from me: I am not sure.",
)


@dataclass(frozen=True, slots=True)
class StrategyMix:
    """Probabilities of the parts of a random strategy, drawn once per episode.

    ``direct``: answer without a call. ``width[k]``: call k + 1 models per turn. ``by_price``: ask
    the drawn models cheapest first rather than in random order. ``stop``: after the first turn
    (``once``), when two answers agree (``agree``), or at each turn with probability one half.
    ``plurality``: select the best-supported answer rather than any. ``select_now``: select in the
    same turn as a single call. ``dial``: how strongly the cost weight tilts the draw of models
    and of width; it gives the dial its plain meaning (spend more, spend less), no more.
    """

    direct: float = 0.1
    width: tuple[float, ...] = (0.35, 0.45, 0.2)
    by_price: float = 0.75
    once: float = 0.2
    agree: float = 0.6
    plurality: float = 0.75
    select_now: float = 0.2
    dial: float = 2.0


class RandomStrategies:
    """A policy that draws its strategy at random and writes it in the codec's tokens.

    The strategy depends on the episode's seed alone, its moves on that and on whether answers
    agree; none of it on whether an answer is right.
    """

    name = "random-strategies"

    def __init__(
        self, codec: Codec, reply: Callable[[Task], str], mix: StrategyMix | None = None
    ) -> None:
        self.codec = codec
        self.reply = reply
        self.mix = mix or StrategyMix()

    async def decide(self, state: State) -> Decision:
        ids = self._action(state, self.codec.view(state.pool))
        content, calls, errors = parse_tool_calls(self.codec.decode(ids, state))
        root, tail = self.codec.encode(state)
        prompt = (*root, *tail)
        choices = self.codec.grammar(state).choices(ids)
        trace = TokenTrace(prompt, tuple(ids), (0.0,) * len(ids), choices)
        return Decision(content, calls, errors, len(prompt), len(ids), 0.0, trace)

    def _action(self, state: State, view: View) -> list[int]:
        episode = np.random.default_rng([state.seed, 0])
        turn = np.random.default_rng([state.seed, 1, len(state.turns)])
        direct = episode.random() < self.mix.direct
        thrift = self._thrift(state)
        order = self._order(view, thrift, episode)
        width = self._width(thrift, episode)
        if episode.random() < self.mix.by_price:
            order[: 2 * width + 1] = sorted(order[: 2 * width + 1], key=view.ids.index)
        rule = episode.choice(
            ["once", "agree", "coin"], p=[self.mix.once, self.mix.agree, self._coin]
        )
        if state.mode == "simple":
            return self.codec.encode_action(view, order[:1])
        if direct and not state.turns:
            return self.codec.encode_action(view, [], text=self.reply(state.task))
        if state.turns and self._stops(state, view, str(rule), turn):
            return self.codec.encode_action(view, [], select=self._choice(state, view, turn))
        asked = {c.model for turn in state.turns for c in turn.completions}
        calls = ([m for m in order if m not in asked] or order)[:width]
        now = width == 1 and not state.turns and turn.random() < self.mix.select_now
        return self.codec.encode_action(view, calls, select=calls[0] if now else None)

    def _thrift(self, state: State) -> float:
        """Where the dial stands: 0 at its lowest cost weight, 1 at its highest."""
        dial = sorted(self.codec.dial)
        place = dial.index(nearest_weight(state.cost_weight, dial))
        return place / (len(dial) - 1) if len(dial) > 1 else 0.5

    def _order(self, view: View, thrift: float, rng: np.random.Generator) -> list[str]:
        """The pool in random order, dear models more often early at low thrift, cheap ones at
        high thrift (Gumbel noise on a slope over the cost rank)."""
        slope = self.mix.dial * (1.0 - 2.0 * thrift)
        keys = slope * np.linspace(0.0, 1.0, len(view.ids)) + rng.gumbel(size=len(view.ids))
        return [view.ids[i] for i in np.argsort(-keys)]

    def _width(self, thrift: float, rng: np.random.Generator) -> int:
        tilt = np.exp(self.mix.dial * (0.5 - thrift) * np.arange(len(self.mix.width)) / 2)
        shares = np.array(self.mix.width) * tilt
        return 1 + int(rng.choice(len(shares), p=shares / shares.sum()))

    @property
    def _coin(self) -> float:
        return 1.0 - self.mix.once - self.mix.agree

    def _stops(self, state: State, view: View, rule: str, rng: np.random.Generator) -> bool:
        if not any(view.slot(c.model) for c in state.completions):
            return False
        if state.turns_left <= 1 or rule == "once":
            return True
        if rule == "agree":
            groups = answer_groups(state.completions)
            return bool(groups) and len(groups[0][1]) > 1
        return bool(rng.random() < 0.5)

    def _choice(self, state: State, view: View, rng: np.random.Generator) -> str:
        """The model whose answer is selected: the best-supported one, or any that answered."""
        if rng.random() < self.mix.plurality:
            return BEST
        return str(rng.choice(sorted({c.model for c in state.completions if view.slot(c.model)})))


def neutral_reply(task: Task) -> str:
    """A direct answer that knows nothing of the task: varied, and right only for small talk."""
    return DIRECT_REPLIES[sum(task.id.encode()) % len(DIRECT_REPLIES)]


def fit(
    model: Qwen2ForCausalLM,
    groups: Sequence[Sequence[TokenSequence]],
    *,
    pad_id: int,
    epochs: int,
    groups_per_batch: int,
    learning_rate: float,
    seed: int,
    table: ChoiceTable | None = None,
    progress: Callable[[float, float], None] = lambda done, loss: None,
) -> float:
    """Cross-entropy on the demonstrations' own tokens, cosine learning rate.

    The sequences of a group share their prompt, which is computed once per batch. Returns the
    mean loss (nats per token) of the last tenth of the updates; ``progress(fraction, loss)`` is
    called after each.
    """
    rng = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    batches = [
        chunk
        for _ in range(epochs)
        for chunk in _chunks(rng.permutation(len(groups)).tolist(), groups_per_batch)
    ]
    losses: list[float] = []
    model.train()
    for update, chunk in enumerate(batches):
        rows = [sequence for i in chunk for sequence in groups[i]]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(update, len(batches))
        batch = make_batch(rows, [[0.0]] * len(rows), pad_id)
        loss = _update(model, optimizer, batch, table)
        losses.append(loss)
        progress((update + 1) / len(batches), loss)
    return float(np.mean(losses[-max(1, len(batches) // 10) :]))


def _chunks(order: list[int], size: int) -> list[list[int]]:
    """Full chunks only, unless there is none."""
    whole = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    return whole or [order]


def _schedule(update: int, updates: int, warmup: int = 20) -> float:
    return min(1.0, (update + 1) / warmup) * (0.55 + 0.45 * float(np.cos(np.pi * update / updates)))


def _update(
    model: Qwen2ForCausalLM,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    table: ChoiceTable | None,
) -> float:
    logp, _ = own_logprobs(model, batch.to(model.device), table)
    loss = -logp.mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())
