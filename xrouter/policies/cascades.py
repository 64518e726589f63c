"""Baselines that call several models: by price tier, by agreement, by a learned acceptance score.

All of them act on :class:`~xrouter.episode.State` alone. Those that are fitted read their
exchange rate λ from ``state.cost_weight`` (cost in units of ``reference_usd``), so one fitted
object covers a whole frontier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from xrouter.catalog import ModelSpec
from xrouter.episode import Completion, Decision, State, ToolCall, answer_groups, best_so_far
from xrouter.tools import SELECT_TOOL

if TYPE_CHECKING:
    from xrouter.outcomes import OutcomeTable

Floats = npt.NDArray[np.float64]
_LADDER = ("budget", "standard", "premium", "specialized")


@lru_cache(maxsize=4096)
def _call_decision(tools: tuple[str, ...], select: str | None) -> Decision:
    calls = [ToolCall(tool) for tool in tools]
    if select is not None:
        calls.append(ToolCall(SELECT_TOOL, {"model_call_name": select}))
    return Decision(tool_calls=tuple(calls))


def call_models(specs: Iterable[ModelSpec]) -> Decision:
    """Call models in parallel and look at the answers in the next turn."""
    return _call_decision(tuple(s.tool_name for s in specs), None)


def call_and_select(state: State, spec: ModelSpec) -> Decision:
    """Call one model and return its answer in the same turn."""
    return _call_decision((spec.tool_name,), spec.tool_name if state.mode == "agent" else None)


def select(state: State, completion: Completion) -> Decision:
    """Return an answer that was given before."""
    return _call_decision((), find(state.pool, completion.model).tool_name)


def find(pool: Sequence[ModelSpec], model: str) -> ModelSpec:
    """The pool member with this id. Raises ValueError naming the pool."""
    for spec in pool:
        if spec.id == model:
            return spec
    raise ValueError(f"model {model!r} is not in the pool: {', '.join(s.id for s in pool)}")


def by_price(pool: Iterable[ModelSpec]) -> list[ModelSpec]:
    """Cheapest first, by the cost of a call of typical length."""
    return sorted(pool, key=lambda spec: (spec.typical_cost(), spec.id))


def called(state: State) -> set[str]:
    """Models that were called, failed calls included."""
    return {c.model for turn in state.turns for c in turn.completions}


class PriceCascade:
    """Climb the price tiers: accept the first answer there is, at the latest on step ``steps``.

    Each step calls the cheapest pool member of the next tier (budget, standard, premium).
    """

    def __init__(self, steps: int = 3) -> None:
        if steps < 1:
            raise ValueError(f"price_cascade: steps={steps}; must be at least 1")
        self.steps = steps
        self.name = "price_cascade"

    async def decide(self, state: State) -> Decision:
        if any(c.answer is not None for c in state.completions):
            return select(state, [c for c in state.completions if c.answer is not None][-1])
        ladder = self._ladder(state.pool)
        tried = called(state)
        left = [spec for spec in ladder if spec.id not in tried] or ladder[-1:]
        if len(left) == 1 or state.turns_left <= 1:
            return call_and_select(state, left[0])
        return call_models(left[:1])

    def _ladder(self, pool: Sequence[ModelSpec]) -> list[ModelSpec]:
        order = by_price(pool)
        rungs = [next((s for s in order if s.tier == tier), None) for tier in _LADDER]
        return [spec for spec in rungs if spec is not None][: self.steps]


class AgreementCascade:
    """Ask the first two models of ``chain`` in parallel; stop when ``quorum`` answers are equal,
    else ask the next one; in the end return the plurality answer (ties: the latest).

    Without a chain: the two cheapest of the pool, then a middling and the dearest one. A chain
    of one model is that model.
    """

    def __init__(
        self, chain: Sequence[str] | None = None, *, quorum: int = 2, name: str | None = None
    ) -> None:
        if chain is not None and (not chain or len(set(chain)) != len(chain)):
            raise ValueError(f"agreement: chain={list(chain)}; name at least one model, each once")
        self.chain = None if chain is None else tuple(chain)
        self.quorum = quorum
        self.name = name or ("agreement:" + ">".join(self.chain) if self.chain else "agreement")

    async def decide(self, state: State) -> Decision:
        return follow_chain(state, self.chain or default_chain(state.pool), self.quorum)


def default_chain(pool: Sequence[ModelSpec]) -> tuple[str, ...]:
    """The two cheapest, the middle and the dearest model by price."""
    order = by_price(pool)
    picks = [*order[:2], order[len(order) // 2], order[-1]]
    return tuple(dict.fromkeys(spec.id for spec in picks))


def follow_chain(state: State, chain: Sequence[str], quorum: int = 2) -> Decision:
    """One step along an agreement chain; :func:`chain_outcomes` is its array form."""
    specs = [find(state.pool, model) for model in chain]
    if len(specs) == 1:
        return call_and_select(state, specs[0])
    if state.mode == "simple":
        return call_models(specs[-1:])
    tried = called(state)
    left = [spec for spec in specs if spec.id not in tried]
    groups = answer_groups(state.completions)
    agreed = bool(groups) and len(groups[0][1]) >= quorum
    if not agreed and left:
        return call_models(left[:1] if tried else left[:2])
    best = best_so_far(state.completions)
    return Decision() if best is None else select(state, best)


def chain_outcomes(
    table: OutcomeTable, chain: Sequence[str], quorum: int = 2
) -> tuple[Floats, Floats]:
    """Quality and cost in USD, each [n], of following an agreement chain on every task."""
    at = [table.column(m) for m in chain]
    code, quality, cost = table.answer_code[:, at], table.quality[:, at], table.cost_usd[:, at]
    if len(at) == 1:
        return quality[:, 0], cost[:, 0]
    running = np.ones(len(code), bool)
    final, spent = np.zeros(len(code)), np.zeros(len(code))
    for size in range(2, len(at) + 1):
        step = cost[:, :2].sum(axis=1) if size == 2 else cost[:, size - 1]
        spent += np.where(running, step, 0.0)
        pick, votes = _plurality(code[:, :size])
        final = np.where(running, quality[np.arange(len(code)), pick], final)
        running &= votes < quorum
    return final, spent


def _plurality(code: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Per row: the latest member of the largest group of equal codes, and the group's size.

    Rows without any answer yield their last column and size 0.
    """
    equal = (code[:, :, None] == code[:, None, :]) & (code[:, :, None] >= 0)
    votes = equal.sum(axis=2)
    order = votes * code.shape[1] + np.arange(code.shape[1])
    pick = order.argmax(axis=1)
    return pick, votes[np.arange(len(code)), pick]


@dataclass(frozen=True)
class ChainSearch:
    """Agreement chains with their mean quality and cost on a table."""

    chains: tuple[tuple[str, ...], ...]
    quality: Floats
    cost_usd: Floats

    def best(self, cost_weight: float, reference_usd: float) -> tuple[str, ...]:
        """The chain with the highest mean ``quality − λ·cost/reference``."""
        utility = self.quality - cost_weight * self.cost_usd / reference_usd
        return self.chains[int(utility.argmax())]

    def frontier(self) -> list[int]:
        """Indices of the chains that no other chain beats on both axes, cheapest first."""
        return undominated(self.cost_usd, self.quality)


def undominated(cost: Floats, quality: Floats) -> list[int]:
    """Indices of the points that no other point beats on both axes, cheapest first."""
    order = np.lexsort((-quality, cost))
    best = np.maximum.accumulate(quality[order])
    better = np.concatenate([[True], quality[order][1:] > best[:-1]])
    return order[better].tolist()


def search_chains(table: OutcomeTable, max_length: int = 4) -> ChainSearch:
    """Evaluate all single models and all chains of 2 to ``max_length`` ≤ 4 models exactly.

    The first two models of a chain are unordered (they are asked in parallel), cheaper first.
    """
    if not 1 <= max_length <= 4:
        raise ValueError(f"max_length={max_length}; must lie between 1 and 4")
    order = np.argsort(table.cost_usd.mean(axis=0), kind="stable")
    table = table.select([table.models[j] for j in order])
    arrays = _ChainArrays(table)
    found: list[_Scored] = [((j,), *arrays.single(j)) for j in range(len(order))]
    for a, b in combinations(range(len(order)), 2):
        found += arrays.extensions(a, b, max_length)
    chains, quality, cost = zip(*found, strict=True)
    names = tuple(tuple(table.models[j] for j in chain) for chain in chains)
    return ChainSearch(names, np.array(quality), np.array(cost))


_Scored = tuple[tuple[int, ...], float, float]


class _ChainArrays:
    """Sums over tasks that score every extension of a chain with two matrix products."""

    def __init__(self, table: OutcomeTable) -> None:
        self.code, self.cost = table.answer_code, table.cost_usd
        self.valid = (self.code >= 0).astype(np.float64)
        self.quality = table.quality
        self.n = len(table.tasks)

    def single(self, j: int) -> tuple[float, float]:
        return float(self.quality[:, j].mean()), float(self.cost[:, j].mean())

    def extensions(self, a: int, b: int, max_length: int) -> list[_Scored]:
        """Chains that start with the pair (a, b)."""
        agree = (self.code[:, a] == self.code[:, b]) & (self.code[:, a] >= 0)
        settled = float(self.quality[agree, a].sum())
        spent = float(self.cost[:, a].sum() + self.cost[:, b].sum())
        left = self._latest(~agree, (a, b))
        out: list[_Scored] = [
            ((a, b), (settled + left.fallback.sum()) / self.n, spent / self.n),
        ]
        if max_length < 3:
            return out
        quality, cost = self._one_more(left)
        thirds = [c for c in range(self.code.shape[1]) if c not in (a, b)]
        for c in thirds:
            out.append(
                ((a, b, c), (settled + quality[c]) / self.n, (spent + cost[c]) / self.n),
            )
            if max_length == 4:
                out += self._fourths(left, (a, b, c), settled, spent)
        return out

    def _fourths(
        self, left: _Open, chain: tuple[int, int, int], settled: float, spent: float
    ) -> list[_Scored]:
        a, b, c = chain
        code = self.code[left.rows]
        match = (code[:, c] >= 0) & ((code[:, c] == code[:, a]) | (code[:, c] == code[:, b]))
        settled += float(self.quality[left.rows[match], c].sum())
        spent += float(self.cost[left.rows, c].sum())
        still = np.zeros(self.n, bool)
        still[left.rows[~match]] = True
        quality, cost = self._one_more(self._latest(still, chain))
        return [
            ((*chain, d), (settled + quality[d]) / self.n, (spent + cost[d]) / self.n)
            for d in range(self.code.shape[1])
            if d not in chain
        ]

    def _latest(self, running: npt.NDArray[np.bool_], chain: tuple[int, ...]) -> _Open:
        """The undecided tasks, and the quality of their latest answer so far."""
        rows = np.flatnonzero(running)
        fallback = self.quality[rows, chain[-1]]
        for j in chain:
            fallback = np.where(self.code[rows, j] >= 0, self.quality[rows, j], fallback)
        return _Open(rows, fallback)

    def _one_more(self, left: _Open) -> tuple[Floats, Floats]:
        """Summed quality and cost [m] of settling the undecided tasks with each model."""
        valid = self.valid[left.rows]
        quality = (valid * self.quality[left.rows]).sum(axis=0) + left.fallback @ (1.0 - valid)
        return quality, self.cost[left.rows].sum(axis=0)


@dataclass(frozen=True)
class _Open:
    rows: npt.NDArray[np.int64]
    fallback: Floats


def best_fixed_chain(
    table: OutcomeTable,
    cost_weight: float,
    reference_usd: float | None = None,
    *,
    max_length: int = 4,
) -> tuple[str, ...]:
    """The agreement chain with the highest mean utility on ``table``, by exhaustive search."""
    return search_chains(table, max_length).best(
        cost_weight, reference_usd or table.reference_usd()
    )


class FixedChain:
    """The best fixed agreement chain at λ = ``state.cost_weight``; with ``by_source`` the best
    chain for each ``task.source`` (tasks of an unknown source get the overall best)."""

    def __init__(
        self,
        table: OutcomeTable,
        reference_usd: float,
        *,
        by_source: bool = False,
        max_length: int = 4,
    ) -> None:
        self.name = "fixed_chain_by_source" if by_source else "fixed_chain"
        self.reference_usd = reference_usd
        self.models = table.models
        self._searches: dict[str | None, ChainSearch] = {None: search_chains(table, max_length)}
        if by_source:
            for source, rows in rows_by_source(table).items():
                self._searches[source] = search_chains(table.rows(rows), max_length)
        self._chains: dict[tuple[str | None, float], tuple[str, ...]] = {}

    def chain(self, source: str | None, cost_weight: float) -> tuple[str, ...]:
        """The chain for a source at an exchange rate λ."""
        key = (source if source in self._searches else None, cost_weight)
        if key not in self._chains:
            self._chains[key] = self._searches[key[0]].best(cost_weight, self.reference_usd)
        return self._chains[key]

    def frontier(self) -> list[AgreementCascade]:
        """The chains that no other beats on the table, cheapest first, as policies."""
        found = self._searches[None]
        return [AgreementCascade(found.chains[i]) for i in found.frontier()]

    async def decide(self, state: State) -> Decision:
        return follow_chain(state, self.chain(state.task.source, state.cost_weight))


def rows_by_source(table: OutcomeTable) -> dict[str, list[int]]:
    """Row numbers of the table grouped by ``task.source``."""
    groups: dict[str, list[int]] = {}
    for i, task in enumerate(table.tasks):
        groups.setdefault(task.source, []).append(i)
    return groups
