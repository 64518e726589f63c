"""Guided decoding: which tokens may come next in one turn of the local router.

A turn is a direct answer, or calls, or a selection, or one call with its answer selected at
once::

    turn   := SAY text END | call+ END | call select END | select END
    call   := CALL_OPEN slot CALL_CLOSE
    select := SELECT_OPEN (slot | BEST) SELECT_CLOSE

A direct answer is allowed on the first turn only; a slot must be in the pool, a called model is
not called again while others are left, a selected one must have answered. ``BEST`` points at the
best-supported answer, so that the router need not spell out which one that is. Sampling and
training use the same masks: log-probabilities are those of the restricted distribution, and
exploration is spent on routing rather than on spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_PARALLEL = 3
MAX_ROUTING_OPTIONS = 64


@dataclass(frozen=True, slots=True)
class Alphabet:
    """Token ids by role."""

    call_open: int
    call_close: int
    select_open: int
    select_close: int
    best: int
    say: int
    end: int
    text: frozenset[int]
    size: int


@dataclass
class ChoiceTable:
    """Interned sets of allowed tokens: id -> bool mask over the vocabulary ``size``."""

    size: int
    _ids: dict[frozenset[int], int] = field(default_factory=dict)
    _rows: list[Tensor] = field(default_factory=list)
    _stacked: Tensor | None = None

    def intern(self, allowed: frozenset[int]) -> int:
        if (known := self._ids.get(allowed)) is not None:
            return known
        row = torch.zeros(self.size, dtype=torch.bool)
        row[list(allowed)] = True
        self._rows.append(row)
        self._stacked = None
        self._ids[allowed] = len(self._rows) - 1
        return len(self._rows) - 1

    def is_routing(self, ids: Tensor) -> Tensor:
        """Bool, True where the choice is one of routing rather than of words."""
        sizes = torch.tensor([int(row.sum()) for row in self._rows], device=ids.device)
        return sizes[ids] <= MAX_ROUTING_OPTIONS

    def masks(self, ids: Tensor) -> Tensor:
        """Bool masks [*ids.shape, vocabulary]."""
        if self._stacked is None or self._stacked.device != ids.device:
            self._stacked = torch.stack(self._rows).to(ids.device)
        return self._stacked[ids]


@dataclass
class Grammar:
    """The automaton of one turn.

    ``fresh`` are the slots that may be called, ``answered`` those that may be selected;
    ``may_answer`` allows a direct answer; ``single`` stands for simple mode: exactly one call.
    """

    alphabet: Alphabet
    table: ChoiceTable
    fresh: tuple[int, ...]
    answered: tuple[int, ...]
    may_answer: bool
    single: bool = False
    _place: str = "start"
    _called: list[int] = field(default_factory=list)

    def allowed(self) -> frozenset[int]:
        """Token ids that may come next."""
        a = self.alphabet
        match self._place:
            case "start":
                return self._start()
            case "say":
                return a.text
            case "text":
                return a.text | {a.end}
            case "call":
                return frozenset(self.fresh) - frozenset(self._called)
            case "call_close":
                return frozenset({a.call_close})
            case "called":
                return self._after_call()
            case "select":
                own = self._called if not self.answered else []
                return frozenset(own) or frozenset(self.answered) | {a.best}
            case "select_close":
                return frozenset({a.select_close})
            case _:
                return frozenset({a.end})

    def _start(self) -> frozenset[int]:
        a = self.alphabet
        options = {a.call_open} if self.fresh else set()
        if self.answered and not self.single:
            options.add(a.select_open)
        if self.may_answer:
            options.add(a.say)
        return frozenset(options)

    def _after_call(self) -> frozenset[int]:
        a = self.alphabet
        options = {a.end}
        if self.single:
            return frozenset(options)
        if len(self._called) < min(MAX_PARALLEL, len(self.fresh)):
            options.add(a.call_open)
        if len(self._called) == 1 and not self.answered:
            options.add(a.select_open)
        return frozenset(options)

    def choice(self) -> int:
        """Id of the allowed set in the table."""
        return self.table.intern(self.allowed())

    def advance(self, token: int) -> None:
        """Take one token. Raises ValueError for one that is not allowed."""
        if token not in self.allowed():
            raise ValueError(f"token {token} is not allowed at {self._place!r}")
        a = self.alphabet
        if self._place == "call":
            self._called.append(token)
        after = {
            a.call_open: "call",
            a.call_close: "called",
            a.select_open: "select",
            a.say: "say",
            a.select_close: "done",
            a.end: "done",
        }
        inside = {"call": "call_close", "select": "select_close"}
        self._place = inside.get(self._place) or after.get(token, "text")

    def choices(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The allowed set at each token of a whole turn; the automaton is used up by it."""
        out = []
        for token in tokens:
            out.append(self.choice())
            self.advance(token)
        return tuple(out)
