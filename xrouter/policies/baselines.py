"""Baselines as policies: they see what a trained router sees, and cost no router tokens.

:func:`make_policy` builds any of them by name. Cascades live in
:mod:`xrouter.policies.cascades`, routers that read the query in
:mod:`xrouter.policies.text_routers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xrouter.catalog import ModelSpec
from xrouter.episode import Decision, State
from xrouter.policies.cascades import (
    AgreementCascade,
    FixedChain,
    PriceCascade,
    best_fixed_chain,
    by_price,
    call_and_select,
    called,
    find,
    rows_by_source,
)
from xrouter.policies.text_routers import (
    FrugalCascade,
    KMeansRouter,
    KNNRouter,
    MatrixFactorizationRouter,
    RidgeRouter,
)

if TYPE_CHECKING:
    from xrouter.orchestrator import Policy
    from xrouter.outcomes import OutcomeTable

__all__ = [
    "FITTED",
    "POLICIES",
    "AgreementCascade",
    "Cheapest",
    "DatasetBest",
    "FixedChain",
    "FrugalCascade",
    "KMeansRouter",
    "KNNRouter",
    "MatrixFactorizationRouter",
    "MostExpensive",
    "Oracle",
    "PriceCascade",
    "RandomModel",
    "RidgeRouter",
    "SingleModel",
    "best_fixed_chain",
    "make_policy",
]

MODEL_PREFIX = "model:"


class SingleModel:
    """Always the same model; called again if the call fails."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.name = MODEL_PREFIX + model

    async def decide(self, state: State) -> Decision:
        return call_and_select(state, find(state.pool, self.model))


class RandomModel:
    """A uniformly random pool member, drawn from (seed, episode seed, task id, turn)."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.name = "random"

    async def decide(self, state: State) -> Decision:
        key = f"{self.seed}\x1f{state.seed}\x1f{state.task.id}\x1f{len(state.turns)}"
        draw = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
        return call_and_select(state, state.pool[draw % len(state.pool)])


class Cheapest:
    """The pool member with the cheapest typical call; if it fails, the next one."""

    name = "cheapest"

    async def decide(self, state: State) -> Decision:
        return call_and_select(state, _next_untried(state, by_price(state.pool)))


class MostExpensive:
    """The pool member with the dearest typical call; if it fails, the next one."""

    name = "most_expensive"

    async def decide(self, state: State) -> Decision:
        return call_and_select(state, _next_untried(state, by_price(state.pool)[::-1]))


def _next_untried(state: State, order: Sequence[ModelSpec]) -> ModelSpec:
    tried = called(state)
    return next((spec for spec in order if spec.id not in tried), order[0])


class DatasetBest:
    """The model with the highest mean ``quality − λ·cost/reference`` on the task's source
    (overall for an unknown source)."""

    name = "dataset_best"

    def __init__(self, table: OutcomeTable, reference_usd: float) -> None:
        self.models = table.models
        self.reference_usd = reference_usd
        self._means = {
            source: (table.quality[rows].mean(axis=0), table.cost_usd[rows].mean(axis=0))
            for source, rows in rows_by_source(table).items()
        }
        self._overall = table.quality.mean(axis=0), table.cost_usd.mean(axis=0)

    async def decide(self, state: State) -> Decision:
        quality, cost = self._means.get(state.task.source, self._overall)
        utility = quality - state.cost_weight * cost / self.reference_usd
        tried = called(state)
        known = [s for s in state.pool if s.id in self.models]
        if not known:
            raise ValueError(f"dataset_best: fitted on {self.models}, the pool has none of them")
        left = [s for s in known if s.id not in tried] or known
        return call_and_select(state, max(left, key=lambda s: utility[self.models.index(s.id)]))


class Oracle:
    """Upper bound, not a policy one could deploy: per task the cheapest pool member that is
    right, looked up in the outcomes of the very tasks it is measured on."""

    name = "oracle"

    def __init__(self, table: OutcomeTable) -> None:
        self._models = table.models
        self._row = {task.id: i for i, task in enumerate(table.tasks)}
        self._rank = np.lexsort((table.cost_usd, -table.quality), axis=1)

    async def decide(self, state: State) -> Decision:
        if state.task.id not in self._row:
            raise ValueError(f"oracle: no outcomes of task {state.task.id!r} in its table")
        pool = {spec.id: spec for spec in state.pool}
        order = [self._models[j] for j in self._rank[self._row[state.task.id]]]
        return call_and_select(state, _next_untried(state, [pool[m] for m in order if m in pool]))


def _single(table: OutcomeTable, reference_usd: float) -> SingleModel:
    policy = SingleModel(table.models[table.best_single()])
    policy.name = "best_single"
    return policy


PLAIN: dict[str, Callable[..., Policy]] = {
    "random": RandomModel,
    "cheapest": Cheapest,
    "most_expensive": MostExpensive,
    "price_cascade": PriceCascade,
    "agreement": AgreementCascade,
}
"""Baselines that need no outcomes."""

FITTED: dict[str, Callable[..., Policy]] = {
    "best_single": _single,
    "dataset_best": DatasetBest,
    "knn": KNNRouter,
    "kmeans": KMeansRouter,
    "ridge": RidgeRouter,
    "matrix_factorization": MatrixFactorizationRouter,
    "frugal": FrugalCascade,
    "fixed_chain": FixedChain,
    "fixed_chain_by_source": lambda *a, **kw: FixedChain(*a, by_source=True, **kw),
}
"""Baselines that are fitted on an outcome table: call with (table, reference_usd)."""

POLICIES = (*PLAIN, *FITTED, "oracle", MODEL_PREFIX + "<id>")


def make_policy(
    name: str,
    table: OutcomeTable | None = None,
    reference_usd: float | None = None,
    **options: Any,
) -> Policy:
    """Build a baseline by name.

    ``table`` is needed by the fitted baselines (training outcomes) and by ``oracle`` (outcomes
    of the tasks it will be measured on); ``reference_usd``, the unit of cost, defaults to the
    table's best single model. Raises ValueError for an unknown name or a missing table.
    """
    key = name.replace("-", "_") if not name.startswith(MODEL_PREFIX) else name
    if key.startswith(MODEL_PREFIX):
        return SingleModel(name.removeprefix(MODEL_PREFIX), **options)
    if key in PLAIN:
        return PLAIN[key](**options)
    if key not in FITTED and key != "oracle":
        raise ValueError(
            f"policy {name!r} is neither a baseline ({', '.join(POLICIES)}) nor a run folder"
        )
    if table is None:
        raise ValueError(f"policy {name!r} needs an outcome table to be fitted on")
    if key == "oracle":
        return Oracle(table)
    return FITTED[key](table, reference_usd or table.reference_usd(), **options)
