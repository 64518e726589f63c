"""Answers of real models, recorded once and replayed: repeatable, and free to train on.

A recording is a folder of three files (``recording.json`` beside them is optional):

==================== ==========================================================================
``queries.parquet``  query_id, task (the benchmark's name), query, gold
``outcomes.parquet`` query_id, model, answer (null: none was found), correct (0 or 1),
                     input_tokens, output_tokens, cost_usd; optional: text (the whole response),
                     attempt (several samples of one cell), latency_s, finish_reason, error
``prices.csv``       model, input_usd_per_million, output_usd_per_million
==================== ==========================================================================

Answers are compared as exact strings, because in output prediction ``' a'`` and ``'a'`` are
different answers and ``''`` is one. So that an empty or padded answer survives prompts and
``strip()``, it is shown as a JSON string (see :func:`visible_answer`).
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from xrouter.catalog import Catalog
from xrouter.episode import DOMAINS, Completion, Task, World
from xrouter.provenance import file_hash, write_atomic, write_json

if TYPE_CHECKING:
    from xrouter.orchestrator import FleetRequest

QUERY_COLUMNS = ("query_id", "task", "query", "gold")
OUTCOME_COLUMNS = (
    "query_id",
    "model",
    "answer",
    "correct",
    "input_tokens",
    "output_tokens",
    "cost_usd",
)
PRICE_COLUMNS = ("model", "input_usd_per_million", "output_usd_per_million")
META_FILE = "recording.json"

_DOMAIN_PATTERNS = (
    ("math", r"gsm|math|aime|amc|olympiad|minerva"),
    ("code", r"crux|code|human-?eval|mbpp|lcb|swe"),
    ("logic", r"zebra|logic|bbh|korbench|arc-?agi|puzzle"),
    ("table", r"finqa|hitab|multihiertt|tabl"),
    ("chat", r"mt-?bench|arena|chat|alpaca"),
)


class RecordedFleet:
    """Replays a recording (fleet protocol of :mod:`xrouter.orchestrator`).

    ``models`` restricts and orders the pool; the default is every model of ``prices.csv``. With
    ``allow_missing`` a missing cell becomes a failing call instead of a refusal to load.

    Dense views over n queries and m models, first sample of each cell: ``correct`` (bool),
    ``cost_usd`` (USD, 0 where missing), ``answer_code`` (int, equal code = equal answer within
    the recording, −1 = no answer), ``available`` (bool), all of shape [n, m].

    Raises FileNotFoundError for a missing file and ValueError for anything in the files that
    cannot be replayed; the message names the file, the column and an example.
    """

    world: World = "recorded"

    def __init__(
        self,
        directory: str | Path,
        *,
        models: Sequence[str] | None = None,
        allow_missing: bool = False,
    ) -> None:
        self.directory = Path(directory)
        queries, outcomes, catalog = read_recording(self.directory)
        self.catalog = _restrict(catalog, models, self.directory)
        self.meta = _read_meta(self.directory)
        self.query_ids: tuple[str, ...] = tuple(queries["query_id"])
        self.model_ids: tuple[str, ...] = tuple(self.catalog.models)
        self._queries = queries
        self._query_index = {q: i for i, q in enumerate(self.query_ids)}
        self._model_index = {m: j for j, m in enumerate(self.model_ids)}
        self._correct_answers, self._solve_rate = _marked_correct(outcomes, self.model_ids)
        self._load_outcomes(outcomes[outcomes["model"].isin(self.model_ids)])
        if not allow_missing and not self.available.all():
            raise ValueError(self._missing_message())

    def _load_outcomes(self, outcomes: pd.DataFrame) -> None:
        """Sort the rows by (query, model, attempt) and build the dense views."""
        rows = outcomes["query_id"].map(self._query_index).to_numpy(np.int64)
        cols = outcomes["model"].map(self._model_index).to_numpy(np.int64)
        attempt = outcomes["attempt"].to_numpy(np.int64) if "attempt" in outcomes else 0 * rows
        order = np.lexsort((attempt, cols, rows))
        shape = (len(self.query_ids), len(self.model_ids))
        cell = (rows * shape[1] + cols)[order]
        unique, first, count = np.unique(cell, return_index=True, return_counts=True)
        self._first = np.full(shape[0] * shape[1], -1)
        self._first[unique] = first
        self._count = np.zeros(shape[0] * shape[1], np.int64)
        self._count[unique] = count
        self._columns = _completion_columns(outcomes.iloc[order])
        self._cache: dict[int, Completion] = {}

        answers = self._columns["answer"]
        codes, self._answer_values = pd.factorize(np.array(answers, dtype=object))
        self.available: npt.NDArray[np.bool_] = (self._first >= 0).reshape(shape)
        self.correct: npt.NDArray[np.bool_] = self._dense(
            outcomes["correct"].to_numpy(np.float64)[order] > 0, False
        )
        self.cost_usd: npt.NDArray[np.float64] = self._dense(
            outcomes["cost_usd"].to_numpy(np.float64)[order], 0.0
        )
        self.answer_code: npt.NDArray[np.int64] = self._dense(codes.astype(np.int64), -1)

    def _dense(self, values: npt.NDArray[Any], missing: Any) -> npt.NDArray[Any]:
        shape = (len(self.query_ids), len(self.model_ids))
        out = np.full(self._first.shape, missing, values.dtype)
        filled = self._first >= 0
        out[filled] = values[self._first[filled]]
        return out.reshape(shape)

    @cached_property
    def answers(self) -> npt.NDArray[np.object_]:
        """Answers as shown to a policy, shape [n, m]; None where there is none."""
        values = np.array([*self._answer_values, None], dtype=object)
        return values[self.answer_code]

    @cached_property
    def data_hash(self) -> str:
        """12 hex digits over the three files."""
        return file_hash(
            self.directory / n for n in ("queries.parquet", "outcomes.parquet", "prices.csv")
        )

    @property
    def evaluation_only(self) -> bool:
        """True where the rules of the source forbid training on it."""
        return bool(self.meta.get("evaluation_only", False))

    def require_trainable(self) -> RecordedFleet:
        """This fleet, or ValueError where its source forbids fitting anything on it."""
        if self.evaluation_only:
            raise ValueError(
                f"{self.directory.name}: this recording is for evaluation only "
                f"({self.meta.get('reason', 'see ' + META_FILE)}); train on another recording"
            )
        return self

    def tasks(self) -> list[Task]:
        """One task per query, in file order.

        ``source`` is ``recorded:<task>``, ``difficulty`` the share of the pool's models that
        fail, ``metadata["correct_answers"]`` every answer (and whole response text) of this
        query that was marked correct.
        """
        return list(self._tasks)

    @cached_property
    def _tasks(self) -> list[Task]:
        columns = (_strings(self._queries[name]) for name in ("task", "query", "gold"))
        return [
            Task(
                id=query_id,
                query=query or "",
                domain=domain_of(name or ""),
                gold=gold or "",
                verifier="recorded",
                difficulty=self._difficulty(query_id),
                source=f"recorded:{name}",
                metadata={
                    "task": name,
                    "correct_answers": self._correct_answers.get(query_id, []),
                },
            )
            for query_id, name, query, gold in zip(self.query_ids, *columns, strict=True)
        ]

    def _difficulty(self, query_id: str) -> float | None:
        rate = self._solve_rate.get(query_id)
        return None if rate is None else 1.0 - rate

    def missing(self) -> pd.DataFrame:
        """The cells without an outcome: columns query_id, task, model."""
        rows, cols = np.nonzero(~self.available)
        return pd.DataFrame(
            {
                "query_id": [self.query_ids[i] for i in rows],
                "task": self._queries["task"].to_numpy()[rows],
                "model": [self.model_ids[j] for j in cols],
            }
        )

    def query_rows(self, query_ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """Row numbers of queries in the dense views. Raises LookupError for an unknown one."""
        return np.array([self._row(q) for q in query_ids], np.int64)

    def model_columns(self, models: Iterable[str]) -> npt.NDArray[np.int64]:
        """Column numbers of models in the dense views. Raises LookupError for an unknown one."""
        return np.array([self._column(m) for m in models], np.int64)

    async def complete(self, request: FleetRequest) -> Completion:
        """The recorded outcome; with k samples, sample ``(seed + attempt) mod k``.

        Raises LookupError naming query and model where there is none.
        """
        cell = self._row(request.task.id) * len(self.model_ids) + self._column(request.model)
        samples = int(self._count[cell])
        if not samples:
            raise LookupError(
                f"{self.directory.name}: no recorded outcome of {request.model!r} for query "
                f"{request.task.id!r}; {int((~self.available).sum())} of {self.available.size} "
                "cells are missing"
            )
        return self._completion(
            int(self._first[cell]) + (request.seed + request.attempt) % samples, request.model
        )

    def _completion(self, row: int, model: str) -> Completion:
        found = self._cache.get(row)
        if found is None:
            values = {name: column[row] for name, column in self._columns.items()}
            found = self._cache[row] = Completion(model=model, **values)
        return found

    def _row(self, query_id: str) -> int:
        try:
            return self._query_index[query_id]
        except KeyError:
            raise LookupError(
                f"{self.directory.name}: query {query_id!r} is not in this recording of "
                f"{len(self.query_ids)} queries"
            ) from None

    def _column(self, model: str) -> int:
        try:
            return self._model_index[model]
        except KeyError:
            raise LookupError(
                f"{self.directory.name}: model {model!r} is not in this fleet; it has "
                f"{', '.join(self.model_ids)}"
            ) from None

    def _missing_message(self) -> str:
        gaps = self.missing()
        worst = gaps["model"].value_counts()
        listed = ", ".join(f"{model} ({n})" for model, n in worst.head(5).items())
        return (
            f"{self.directory.name}/outcomes.parquet: {len(gaps)} of {self.available.size} cells "
            f"have no outcome, first {gaps['query_id'][0]!r} × {gaps['model'][0]!r}; most from "
            f"{listed}. Leave those models out (models=…) or pass allow_missing=True"
        )


def visible_answer(answer: str) -> str:
    """The form in which a policy sees an answer: non-empty and safe to strip.

    Answers that are empty, padded with white space, or start with a double quote become JSON
    strings; all others stay as they are. Different answers have different forms.
    """
    if answer and answer == answer.strip() and not answer.startswith('"'):
        return answer
    return json.dumps(answer, ensure_ascii=False)


def domain_of(task: str) -> str:
    """Map a benchmark's name to one of :data:`xrouter.episode.DOMAINS` (``stem`` otherwise)."""
    name = task.lower()
    if name in DOMAINS:
        return name
    for domain, pattern in _DOMAIN_PATTERNS:
        if re.search(pattern, name):
            return domain
    return "stem"


def describe(fleet: RecordedFleet) -> dict[str, Any]:
    """What a recording holds: sizes, the best single model, the oracle, gaps."""
    accuracy = fleet.correct.mean(axis=0)
    usd = fleet.cost_usd.mean(axis=0)
    best = min(range(len(accuracy)), key=lambda j: (-accuracy[j], usd[j]))
    solved = fleet.correct.any(axis=1)
    cheapest = np.where(fleet.correct, fleet.cost_usd, np.inf).min(axis=1)
    oracle_usd = np.where(solved, cheapest, fleet.cost_usd.min(axis=1)).mean()
    return {
        "name": fleet.directory.resolve().name,
        "data_hash": fleet.data_hash,
        "evaluation_only": fleet.evaluation_only,
        "queries": len(fleet.query_ids),
        "queries_by_task": fleet._queries["task"].value_counts().to_dict(),
        "samples_per_cell": float(fleet._count.mean()),
        "missing_cells": int((~fleet.available).sum()),
        "models": [
            {
                "model": model,
                "accuracy": float(accuracy[j]),
                "usd_per_1k": float(usd[j] * 1e3),
                "no_answer": int((fleet.answer_code[:, j] < 0).sum()),
                "missing": int((~fleet.available[:, j]).sum()),
            }
            for j, model in enumerate(fleet.model_ids)
        ],
        "best_single": {
            "model": fleet.model_ids[best],
            "accuracy": float(accuracy[best]),
            "usd_per_1k": float(usd[best] * 1e3),
        },
        "oracle": {"accuracy": float(solved.mean()), "usd_per_1k": float(oracle_usd * 1e3)},
    }


def read_recording(directory: Path) -> tuple[pd.DataFrame, pd.DataFrame, Catalog]:
    """Read and check the three files; answers come back in their visible form."""
    queries = _read(directory / "queries.parquet", QUERY_COLUMNS)
    outcomes = _read(directory / "outcomes.parquet", OUTCOME_COLUMNS)
    prices = directory / "prices.csv"
    if not prices.is_file():
        raise FileNotFoundError(_no_file(prices))
    catalog = Catalog.from_prices(prices)
    _refuse_repeats(queries, ["query_id"], "queries.parquet")
    _check_outcomes(queries, outcomes, catalog)
    return queries, _without_empty_successes(outcomes), catalog


def write_recording(
    directory: str | Path,
    queries: pd.DataFrame,
    outcomes: pd.DataFrame,
    prices: pd.DataFrame,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Write a recording atomically, file by file, then read it back to check it."""
    folder = Path(directory)
    for name, frame in (("queries", queries), ("outcomes", outcomes)):
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False, compression="zstd")
        write_atomic(folder / f"{name}.parquet", buffer.getvalue())
    write_atomic(folder / "prices.csv", prices[list(PRICE_COLUMNS)].to_csv(index=False))
    write_json(folder / META_FILE, dict(meta or {}))
    read_recording(folder)


def _read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(_no_file(path))
    frame = pd.read_parquet(path)
    if lacking := [c for c in columns if c not in frame.columns]:
        raise ValueError(
            f"{path.parent.name}/{path.name}: column(s) {lacking} are missing; it has "
            f"{list(frame.columns)}"
        )
    if not len(frame):
        raise ValueError(f"{path.parent.name}/{path.name}: has no rows")
    return frame


def _no_file(path: Path) -> str:
    return (
        f"{path.parent}: {path.name} is missing; a recording needs queries.parquet, "
        "outcomes.parquet and prices.csv"
    )


def _refuse_repeats(frame: pd.DataFrame, key: list[str], name: str) -> None:
    repeated = frame.duplicated(key)
    if repeated.any():
        example = frame.loc[repeated, key].iloc[0].to_dict()
        raise ValueError(
            f"{name}: {int(repeated.sum())} repeated rows for {key}, first {example}; keep one "
            "row each" + ("" if "model" not in key else " or number samples in 'attempt'")
        )


def _check_outcomes(queries: pd.DataFrame, outcomes: pd.DataFrame, catalog: Catalog) -> None:
    key = [c for c in ("query_id", "model", "attempt") if c in outcomes.columns]
    _refuse_repeats(outcomes, key, "outcomes.parquet")
    _refuse_rows(
        outcomes, ~outcomes["query_id"].isin(queries["query_id"]), "query_id", "not in queries"
    )
    _refuse_rows(outcomes, ~outcomes["model"].isin(list(catalog.models)), "model", "no price")
    for column in ("correct", "cost_usd", "input_tokens", "output_tokens"):
        values = pd.to_numeric(outcomes[column], errors="coerce")
        _refuse_rows(outcomes, ~np.isfinite(values.to_numpy(np.float64)), column, "not a number")
        _refuse_rows(outcomes, values < 0, column, "negative")
    _refuse_rows(
        outcomes, ~outcomes["correct"].isin([0, 1]), "correct", "neither 0 nor 1; binarise it"
    )


def _without_empty_successes(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Count as wrong what is marked correct but holds nothing that could be returned."""
    empty = outcomes["answer"].isna()
    if "text" in outcomes:
        empty &= outcomes["text"].fillna("").str.strip() == ""
    empty &= outcomes["correct"] > 0
    if not empty.any():
        return outcomes
    warnings.warn(
        f"outcomes.parquet: {int(empty.sum())} rows are marked correct but have neither answer "
        "nor text; they count as wrong",
        stacklevel=2,
    )
    return outcomes.assign(correct=outcomes["correct"].where(~empty, 0))


def _refuse_rows(
    frame: pd.DataFrame, bad: pd.Series | npt.NDArray[np.bool_], column: str, what: str
) -> None:
    mask = np.asarray(bad, dtype=bool)
    if mask.any():
        row = frame[mask].iloc[0]
        raise ValueError(
            f"outcomes.parquet: {column}={row[column]!r} ({what}) in {int(mask.sum())} rows, first "
            f"query {row['query_id']!r}, model {row['model']!r}"
        )


def _restrict(catalog: Catalog, models: Sequence[str] | None, directory: Path) -> Catalog:
    if models is None:
        return catalog
    if unknown := [m for m in models if m not in catalog]:
        raise ValueError(
            f"models={unknown} are not in {directory.name}/prices.csv, which has "
            f"{', '.join(catalog.models)}"
        )
    if not models or len(set(models)) != len(models):
        raise ValueError(f"models={list(models)}; name at least one model, each once")
    return Catalog(catalog.select(models))


def _read_meta(directory: Path) -> dict[str, Any]:
    path = directory / META_FILE
    if not path.is_file():
        return {}
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{directory.name}/{META_FILE}: not valid JSON: {error}") from None
    if not isinstance(meta, dict):
        raise ValueError(f"{directory.name}/{META_FILE}: expected an object")
    return meta


def _strings(series: pd.Series) -> list[str | None]:
    return series.astype(object).where(series.notna(), None).tolist()


def _shown(outcomes: pd.DataFrame) -> tuple[list[str | None], list[str]]:
    """Answers and texts as policies see them."""
    answers = [a if a is None else visible_answer(a) for a in _strings(outcomes["answer"])]
    if "text" not in outcomes:
        return answers, [a or "" for a in answers]
    texts = _strings(outcomes["text"])
    return answers, [t or a or "" for t, a in zip(texts, answers, strict=True)]


def _completion_columns(outcomes: pd.DataFrame) -> dict[str, list[Any]]:
    answers, texts = _shown(outcomes)
    columns: dict[str, list[Any]] = {"text": texts, "answer": answers}
    for name in ("input_tokens", "output_tokens", "cached_input_tokens"):
        if name in outcomes:
            columns[name] = outcomes[name].fillna(0).astype(int).tolist()
    columns["cost_usd"] = outcomes["cost_usd"].astype(float).tolist()
    if "latency_s" in outcomes:
        columns["latency_s"] = outcomes["latency_s"].fillna(0.0).astype(float).tolist()
    if "finish_reason" in outcomes:
        columns["finish_reason"] = [r or "stop" for r in _strings(outcomes["finish_reason"])]
    if "error" in outcomes:
        columns["error"] = [e or None for e in _strings(outcomes["error"])]
    return columns


def _marked_correct(
    outcomes: pd.DataFrame, models: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Per query: the strings that count as right (all models), and the pool's solve rate."""
    right = outcomes[outcomes["correct"] > 0]
    answers, texts = _shown(right)
    found: dict[str, set[str]] = defaultdict(set)
    for query, answer, text in zip(right["query_id"], answers, texts, strict=True):
        found[query].update(s.strip() for s in (answer, text) if s)
    pool = outcomes[outcomes["model"].isin(list(models))]
    rate = pool.groupby("query_id")["correct"].mean()
    return {q: sorted(s) for q, s in found.items()}, dict(
        zip(rate.index, rate.to_numpy(float).tolist(), strict=True)
    )
