"""Text and tokens of the local router: prompt layout, tokenizer, decoding of what it says.

The router speaks Hermes: ``<tool_call>{"name": "call_gpt_5_mini", "arguments": {}}</tool_call>``.
A language model of a million parameters can neither spell model names it has never seen nor
afford thirty tokens per call, so two devices keep its sequences short and its pool open:

- *slots*: within a prompt the pool is numbered by expected cost, ``<|m0|>`` being the cheapest;
  the slot token stands for the model's tool name, in the prompt and in what the router writes.
  Decoding puts the real name back, so the text outside this module is plain Hermes;
- *macros*: the fixed parts of a tool call are single tokens.

``<|best|>`` in a selection stands for the model of the best-supported answer so far.

Layout of a prompt (one line each, without the breaks)::

    <|system|> <|agent|> <|w4|>                           mode, cost weight
    <|m0|>gpt-4o-mini<|budget|><|$3|><|q6|> …             slot, id, tier, cost, quality
    <|user|> <|len5|> query text <|w4|>                   head and tail of the request
    <|assistant|> …                                       a turn: calls, or <|say|> and words
    <|tool|> <|m0|><|A|> <|m1|><|B|>                       answers; equal letters agree
    <|best|><|m1|><|x1|><|$4|><|t2|><|w4|> <|assistant|>   plurality, its size, spent, turns left
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from xrouter.catalog import TIERS, TOOL_PREFIX, ModelSpec, tool_name
from xrouter.episode import Completion, State, Turn, best_so_far
from xrouter.policies.cards import Card, shortlist
from xrouter.policies.grammar import Alphabet, ChoiceTable, Grammar
from xrouter.provenance import write_atomic, write_json
from xrouter.tools import SELECT_TOOL

BEST, SAY = "<|best|>", "<|say|>"
MAX_SLOTS = 32
COST_WEIGHTS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8, 1.2)
COST_BINS = 14
QUALITY_BINS = 12
PAD, END, SYSTEM, USER, ASSISTANT, TOOL = (
    "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>",
)  # fmt: skip
CALL_OPEN = '<tool_call>{"name": "call_'
CALL_CLOSE = '", "arguments": {}}</tool_call>'
SELECT_OPEN = f'<tool_call>{{"name": "{SELECT_TOOL}", "arguments": {{"model_call_name": "call_'
SELECT_CLOSE = '"}}</tool_call>'
MACROS = (CALL_OPEN, CALL_CLOSE, SELECT_OPEN, SELECT_CLOSE)


def _tokens(stem: str, values: Iterable[object]) -> tuple[str, ...]:
    return tuple(f"<|{stem}{v}|>" for v in values)


SLOTS = _tokens("m", range(MAX_SLOTS))
WEIGHTS = _tokens("w", range(len(COST_WEIGHTS)))
COSTS = _tokens("$", range(COST_BINS))
QUALITIES = (*_tokens("q", range(QUALITY_BINS)), "<|q?|>")
TIER_TOKENS = _tokens("", TIERS)
GROUPS = _tokens("", "ABCDEFGH")
COUNTS = _tokens("x", range(10))
TURNS = _tokens("t", range(9))
LENGTHS = _tokens("len", range(12))
MODES = ("<|agent|>", "<|simple|>")
MARKS = ("<|none|>", "<|error|>", "<|bad|>", BEST, SAY, "<|cut|>", "<|history|>")
SPECIALS = (
    PAD, END, SYSTEM, USER, ASSISTANT, TOOL, *MODES, *MARKS, *SLOTS, *WEIGHTS, *COSTS, *QUALITIES,
    *TIER_TOKENS, *GROUPS, *COUNTS, *TURNS, *LENGTHS, *MACROS,
)  # fmt: skip


def nearest_weight(cost_weight: float, dial: Sequence[float] = COST_WEIGHTS) -> float:
    """The position of ``dial`` nearest to a cost weight, on a log scale; 0 is nearest to what is
    below half of the smallest positive position."""
    if cost_weight < 0 or not math.isfinite(cost_weight):
        raise ValueError(f"cost_weight={cost_weight}; must be a finite number >= 0")
    positive = [w for w in dial if w > 0]
    if not positive or (0.0 in dial and cost_weight < min(positive) / 2):
        return 0.0
    target = max(cost_weight, min(positive))
    return min(positive, key=lambda w: abs(math.log(w / target)))


def cost_bin(usd: float, reference_usd: float) -> int:
    """Three bins per decade of ``usd / reference_usd``, from a thousandth to about twenty."""
    if usd <= 0:
        return 0
    return min(COST_BINS - 1, max(0, round(3 * (math.log10(usd / reference_usd) + 3))))


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, names: Iterable[str]) -> Tokenizer:
    """A byte-level BPE over request texts, with one token for each known model id.

    ``vocab_size`` counts everything: specials, names and merges. Any text can be encoded.
    """
    known = [f"<|id:{name}|>" for name in sorted(set(names))]
    floor = 256 + len(SPECIALS) + len(known)
    if vocab_size < floor:
        raise ValueError(f"policy.vocab_size={vocab_size}; needs at least {floor}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIALS, *known],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True, slots=True)
class View:
    """How one pool is numbered: slot i is ``ids[i]``."""

    ids: tuple[str, ...]

    def slot(self, model_id: str) -> str | None:
        return SLOTS[self.ids.index(model_id)] if model_id in self.ids else None


class Codec:
    """Renders states to token ids and reads token ids back as Hermes text.

    ``cards`` may lack a model of the pool: its card is then made from the catalog.
    ``reference_usd`` is the unit of the cost bins. ``dial`` are the cost weights that the router
    was trained on, each shown as the token of its nearest of :data:`COST_WEIGHTS`; any other
    cost weight is read as the nearest of them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        cards: Mapping[str, Card],
        reference_usd: float,
        query_tokens: int = 48,
        max_pool: int = MAX_SLOTS,
        dial: Sequence[float] = COST_WEIGHTS,
    ) -> None:
        if not 1 <= max_pool <= MAX_SLOTS:
            raise ValueError(f"policy.max_pool={max_pool}; must lie in 1..{MAX_SLOTS}")
        if query_tokens < 8:
            raise ValueError(f"policy.query_tokens={query_tokens}; must be at least 8")
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True
        self.cards = dict(cards)
        self.reference_usd = reference_usd
        self.query_tokens = query_tokens
        self.max_pool = max_pool
        self.dial = tuple(dial)
        self._views: dict[tuple[str, ...], tuple[View, list[int]]] = {}
        self._last: tuple[Hashable, tuple[int, ...]] | None = None

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    @property
    def pad_id(self) -> int:
        return self.vocabulary[PAD]

    @property
    def end_id(self) -> int:
        return self.vocabulary[END]

    def card(self, spec: ModelSpec) -> Card:
        return self.cards.get(spec.id) or Card(spec.typical_cost())

    def view(self, pool: Sequence[ModelSpec]) -> View:
        return self._pool(pool)[0]

    def _pool(self, pool: Sequence[ModelSpec]) -> tuple[View, list[int]]:
        key = tuple(spec.id for spec in pool)
        if key not in self._views:
            self._views[key] = self._render_pool(pool)
        return self._views[key]

    def _render_pool(self, pool: Sequence[ModelSpec]) -> tuple[View, list[int]]:
        specs = {spec.id: spec for spec in pool}
        cards = {spec.id: self.card(spec) for spec in pool}
        ids = shortlist(cards, min(self.max_pool, len(cards)))
        tokens: list[int] = []
        for slot, model in zip(SLOTS, ids, strict=False):
            tokens.append(self.vocabulary[slot])
            tokens += self._name(model)
            tokens.append(self.vocabulary[f"<|{specs[model].tier}|>"])
            tokens.append(self.vocabulary[self._cost(cards[model].cost_usd)])
            tokens.append(self.vocabulary[_quality(cards[model].quality)])
        return View(ids), tokens

    def _name(self, model_id: str) -> list[int]:
        known = self.vocabulary.get(f"<|id:{model_id}|>")
        return [known] if known is not None else self._text(model_id)[:6]

    def _weight(self, state: State) -> str:
        trained = nearest_weight(state.cost_weight, self.dial)
        return WEIGHTS[COST_WEIGHTS.index(nearest_weight(trained))]

    def _cost(self, usd: float) -> str:
        return COSTS[cost_bin(usd, self.reference_usd)]

    def _text(self, text: str) -> list[int]:
        """Token ids of user text; what looks like a special token stays plain text."""
        return self.tokenizer.encode(text).ids

    def encode(self, state: State) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The context before the router's next turn: (request, turns so far).

        The first part is the same for every episode of one request, pool and cost weight.
        """
        key = (state.task.id, state.task.query, state.mode, state.cost_weight, state.pool)
        if self._last is None or self._last[0] != key:
            self._last = (key, self._request(state))
        view = self.view(state.pool)
        turns: list[int] = []
        seen: list[Completion] = []
        spent = 0.0
        for turn in state.turns:
            turns += self._own_tokens(turn)
            seen += turn.completions
            spent += turn.cost_usd
            turns += self._observation(view, turn, seen, spent, state)
        return self._last[1], tuple(turns)

    def _request(self, state: State) -> tuple[int, ...]:
        ids = self.vocabulary
        weight = self._weight(state)
        mode = MODES[state.mode == "simple"]
        head = (ids[SYSTEM], ids[mode], ids[weight], *self._pool(state.pool)[1], ids[USER])
        return (*head, *self._query(state), ids[weight], ids[ASSISTANT])

    def _query(self, state: State) -> list[int]:
        ids = self.vocabulary
        text = "\n".join(part for part in (state.task.system, state.task.query) if part)
        length = min(len(LENGTHS) - 1, len(text).bit_length())
        head = [ids[LENGTHS[length]]] + ([ids["<|history|>"]] if state.task.history else [])
        room = self.query_tokens
        tokens = self._text(text[: 8 * room] + text[-8 * room :] if len(text) > 16 * room else text)
        if len(tokens) > room:
            front = room // 3
            tokens = [*tokens[:front], ids["<|cut|>"], *tokens[front + 1 - room :]]
        return head + tokens

    def _own_tokens(self, turn: Turn) -> list[int]:
        if turn.decision.trace is None:
            raise ValueError("the local policy can only continue episodes of its own")
        return list(turn.decision.trace.response_ids)

    def _observation(
        self, view: View, turn: Turn, seen: Sequence[Completion], spent: float, state: State
    ) -> list[int]:
        letters: dict[str, str] = {}
        for c in seen:
            if c.ok and c.answer is not None:
                letters.setdefault(c.answer, GROUPS[min(len(letters), len(GROUPS) - 1)])
        out = [TOOL]
        for result in turn.results:
            done = result.completion
            if done is None:
                out.append("<|bad|>" if result.error else "<|none|>")
                continue
            mark = "<|error|>" if not done.ok else "<|none|>"
            if done.ok and done.answer is not None:
                mark = letters[done.answer]
            out += [view.slot(done.model) or "<|none|>", mark]
        out += ["<|bad|>"] * len(turn.decision.parse_errors)
        if (best := best_so_far(seen)) is not None:
            votes = sum(c.ok and c.answer is not None and c.answer == best.answer for c in seen)
            out += [BEST, view.slot(best.model) or "<|none|>", COUNTS[min(votes, 9)]]
        left = TURNS[min(state.max_turns - turn.index - 1, len(TURNS) - 1)]
        weight = self._weight(state)
        out += [self._cost(spent), left, weight, ASSISTANT]
        return [self.vocabulary[token] for token in out]

    @cached_property
    def alphabet(self) -> Alphabet:
        ids = self.vocabulary
        marked = {i for token, i in ids.items() if token in SPECIALS or token.startswith("<|id:")}
        return Alphabet(
            call_open=ids[CALL_OPEN],
            call_close=ids[CALL_CLOSE],
            select_open=ids[SELECT_OPEN],
            select_close=ids[SELECT_CLOSE],
            best=ids[BEST],
            say=ids[SAY],
            end=ids[END],
            text=frozenset(ids.values()) - marked,
            size=len(ids),
        )

    @cached_property
    def choice_table(self) -> ChoiceTable:
        return ChoiceTable(self.alphabet.size)

    def grammar(self, state: State) -> Grammar:
        """What the router may write in its next turn."""
        view, ids = self.view(state.pool), self.vocabulary
        asked = {c.model for turn in state.turns for c in turn.completions}
        answered = [s for s in map(view.slot, {c.model for c in state.completions}) if s]
        fresh = [s for s, m in zip(SLOTS, view.ids, strict=False) if m not in asked]
        return Grammar(
            self.alphabet,
            self.choice_table,
            fresh=tuple(ids[s] for s in fresh or SLOTS[: len(view.ids)]),
            answered=tuple(sorted(ids[s] for s in answered)),
            may_answer=state.mode == "agent" and not state.turns,
            single=state.mode == "simple",
        )

    def decode(self, ids: Sequence[int], state: State) -> str:
        """Router text with pointers replaced by tool names; the end token is dropped."""
        kept = [i for i in ids if i not in (self.end_id, self.vocabulary[SAY])]
        text = self.tokenizer.decode(kept, skip_special_tokens=False)
        best = best_so_far(state.completions)
        names = dict(zip(SLOTS, self.view(state.pool).ids, strict=False))
        if best is not None:
            names[BEST] = best.model
        for pointer, model in names.items():
            text = text.replace(pointer, tool_name(model).removeprefix(TOOL_PREFIX))
        return text

    def encode_action(
        self, view: View, calls: Sequence[str], select: str | None = None, text: str = ""
    ) -> list[int]:
        """Token ids of a turn that calls models, selects one (or ``BEST``), or answers in
        ``text``."""
        ids = self.vocabulary
        out = [ids[SAY], *self._text(text)] if text else []
        for model in calls:
            out += [ids[CALL_OPEN], ids[str(view.slot(model))], ids[CALL_CLOSE]]
        if select is not None:
            pointer = BEST if select == BEST else str(view.slot(select))
            out += [ids[SELECT_OPEN], ids[pointer], ids[SELECT_CLOSE]]
        return [*out, self.end_id]

    def save(self, folder: Path) -> None:
        write_atomic(folder / "tokenizer.json", self.tokenizer.to_str(pretty=False))
        write_json(
            folder / "router.json",
            {
                "format": 1,
                "reference_usd": self.reference_usd,
                "query_tokens": self.query_tokens,
                "max_pool": self.max_pool,
                "dial": list(self.dial),
                "cards": {m: [c.cost_usd, c.quality] for m, c in sorted(self.cards.items())},
            },
        )

    @classmethod
    def load(cls, folder: Path) -> Codec:
        meta = json.loads((folder / "router.json").read_text(encoding="utf-8"))
        if meta.get("format") != 1:
            raise ValueError(
                f"{folder.name}/router.json: format={meta.get('format')!r}; expected 1"
            )
        return cls(
            Tokenizer.from_file(str(folder / "tokenizer.json")),
            cards={m: Card(cost, quality) for m, (cost, quality) in meta["cards"].items()},
            reference_usd=meta["reference_usd"],
            query_tokens=meta["query_tokens"],
            max_pool=meta["max_pool"],
            dial=meta["dial"],
        )


def _quality(value: float | None) -> str:
    if value is None:
        return QUALITIES[-1]
    return QUALITIES[min(QUALITY_BINS - 1, max(0, int(value * QUALITY_BINS)))]
