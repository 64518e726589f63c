"""Every model's outcome for every task, as arrays: what baselines are fitted on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from xrouter.episode import Completion, Task
from xrouter.fleets.recorded import RecordedFleet
from xrouter.orchestrator import Fleet, FleetRequest

Scorer = Callable[[Task, str], float]


@dataclass(frozen=True)
class OutcomeTable:
    """Outcomes of m models on n tasks, one call each.

    ``quality`` [n, m] in [0, 1]; ``cost_usd`` [n, m] in USD per call; ``answers`` [n, m] of
    str or None, equal strings being the same answer. A failed call has quality 0 and cost 0.
    """

    tasks: tuple[Task, ...]
    models: tuple[str, ...]
    quality: npt.NDArray[np.float64]
    cost_usd: npt.NDArray[np.float64]
    answers: npt.NDArray[np.object_]

    def __post_init__(self) -> None:
        shape = (len(self.tasks), len(self.models))
        if 0 in shape:
            raise ValueError(f"outcome table: {shape[0]} tasks × {shape[1]} models; needs both")
        for name in ("quality", "cost_usd", "answers"):
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(f"outcome table: {name} has shape {found}, expected {shape}")

    @cached_property
    def answer_code(self) -> npt.NDArray[np.int64]:
        """Answers as integers [n, m]; equal code = equal answer, −1 = no answer."""
        flat = [None if a is None else str(a) for a in self.answers.ravel()]
        index = {a: i for i, a in enumerate(dict.fromkeys(a for a in flat if a is not None))}
        codes = [-1 if a is None else index[a] for a in flat]
        return np.array(codes, np.int64).reshape(self.answers.shape)

    def column(self, model: str) -> int:
        """Column of a model. Raises ValueError for an unknown one."""
        if model not in self.models:
            raise ValueError(f"model {model!r} is not in the outcome table: {self.models}")
        return self.models.index(model)

    def rows(self, index: Sequence[int] | npt.NDArray[np.int64]) -> OutcomeTable:
        """The table of some tasks, by row number."""
        at = np.asarray(index, np.int64)
        return replace(
            self,
            tasks=tuple(self.tasks[i] for i in at),
            quality=self.quality[at],
            cost_usd=self.cost_usd[at],
            answers=self.answers[at],
        )

    def select(self, models: Sequence[str]) -> OutcomeTable:
        """The table of some models, in the given order."""
        at = [self.column(m) for m in models]
        return replace(
            self,
            models=tuple(models),
            quality=self.quality[:, at],
            cost_usd=self.cost_usd[:, at],
            answers=self.answers[:, at],
        )

    def best_single(self) -> int:
        """Column of the most accurate model; of equals, the cheapest."""
        accuracy, usd = self.quality.mean(axis=0), self.cost_usd.mean(axis=0)
        return min(range(len(self.models)), key=lambda j: (-accuracy[j], usd[j]))

    def reference_usd(self) -> float:
        """Mean cost of a query when the best single model answers everything, in USD: the unit
        of cost in the reward."""
        return float(self.cost_usd[:, self.best_single()].mean())

    def oracle(self) -> npt.NDArray[np.int64]:
        """Column of the best model per task [n]: highest quality, of equals the cheapest."""
        best = self.quality >= self.quality.max(axis=1, keepdims=True)
        return np.where(best, self.cost_usd, np.inf).argmin(axis=1)


async def collect_outcomes(
    fleet: Fleet,
    tasks: Sequence[Task],
    models: Sequence[str] | None = None,
    *,
    score: Scorer | None = None,
    seed: int = 0,
    concurrency: int = 64,
) -> OutcomeTable:
    """Call every model once on every task; for a recorded fleet this is a look-up.

    ``models`` defaults to the whole fleet, ``score`` to :func:`xrouter.verifiers.score`.
    """
    names = tuple(models or fleet.catalog.models)
    if unknown := [m for m in names if m not in fleet.catalog]:
        raise ValueError(
            f"models={unknown} are not in the fleet: {', '.join(fleet.catalog.models)}"
        )
    if isinstance(fleet, RecordedFleet):
        return recorded_table(fleet, tasks, names)
    if score is None:
        from xrouter.verifiers import score as verifier_score

        score = verifier_score
    limit = asyncio.Semaphore(concurrency)

    async def one(task: Task, model: str) -> Completion:
        async with limit:
            try:
                return await fleet.complete(FleetRequest(task, model, seed=seed))
            except Exception as error:  # a failing model is an outcome
                return Completion(model, "", error=f"{type(error).__name__}: {error}")

    done = await asyncio.gather(*(one(t, m) for t in tasks for m in names))
    shape = (len(tasks), len(names))
    owners = [t for t in tasks for _ in names]
    quality = [score(t, c.text) if c.ok else 0.0 for t, c in zip(owners, done, strict=True)]
    return OutcomeTable(
        tuple(tasks),
        names,
        np.array(quality, np.float64).reshape(shape),
        np.array([c.cost_usd for c in done], np.float64).reshape(shape),
        np.array([c.answer for c in done] + [None], dtype=object)[:-1].reshape(shape),
    )


def recorded_table(
    fleet: RecordedFleet, tasks: Sequence[Task], models: Sequence[str] | None = None
) -> OutcomeTable:
    """The outcome table of a recording, taken from its dense views."""
    names = tuple(models or fleet.model_ids)
    at = np.ix_(fleet.query_rows(t.id for t in tasks), fleet.model_columns(names))
    return OutcomeTable(
        tuple(tasks),
        names,
        fleet.correct[at].astype(np.float64),
        fleet.cost_usd[at],
        fleet.answers[at],
    )
