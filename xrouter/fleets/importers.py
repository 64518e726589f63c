"""Importers of published per-query results into the three-file format of
:mod:`xrouter.fleets.recorded`.

================== ===========================================================================
``zeroeval``       ZeroEval ``result_dirs``: ``<task>/<model>.json`` (GSM8K, MATH level 5,
                   CRUXEval, multiple choice); needs prices
``routerbench``    RouterBench: one wide table (parquet, CSV or pickle) with columns ``<model>``,
                   ``<model>|total_cost`` and ``<model>|model_response``
``mmlu-pro``       MMLU-Pro ``eval_results``: archives ``model_outputs_<model>_<k>shots.zip`` and
                   folders of ``<subject>_result.json``; needs prices
``llmrouterbench`` LLMRouterBench: ``<dataset>/<split>/<model>/*.json``, latest non-demo run
``routerarena``    RouterArena ``cached_results``: ``<model>.jsonl``; for evaluation only
================== ===========================================================================

Correctness is the publisher's where the files hold it (graded scores count as right from
:data:`CORRECT_FROM` on), and re-extracted from the raw output for ZeroEval. Token counts that
are not published are characters / 4. Prices that are not given are fitted to the published costs.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from pandas.compat import pickle_compat

from xrouter.catalog import Catalog
from xrouter.fleets.recorded import PRICE_COLUMNS, write_recording
from xrouter.verifiers import final_answer

CORRECT_FROM = 0.5
MIN_COVERAGE = 0.9
_CHARS_PER_TOKEN = 4
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class Results:
    """What an importer found: rows of the future files, before they are made complete.

    ``prices`` maps a model to (input, output) USD per million tokens where the source says;
    an outcome without a ``cost_usd`` is charged at the model's price.
    """

    queries: dict[str, dict[str, str]] = field(default_factory=dict)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    prices: dict[str, tuple[float, float]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)

    def add_query(self, query_id: str, task: str, query: str, gold: str) -> bool:
        """Add a query, or check that it is the one known by this id; False where it is not."""
        row = {"query_id": query_id, "task": task, "query": query, "gold": gold}
        return self.queries.setdefault(query_id, row)["query"] == query


def import_results(
    format_: str,
    source: str | Path,
    out: str | Path,
    *,
    prices: str | Path | None = None,
    complete: bool = True,
) -> None:
    """Read published results and write a recording to ``out``.

    ``prices`` is a CSV of model, input_usd_per_million, output_usd_per_million; models that it
    does not list are left out. With ``complete``, models that answered fewer than 90 % of the
    queries are left out, then queries that some remaining model did not answer, so that every
    cell is filled. Raises ValueError for an unknown format, unreadable files, or missing prices,
    and FileNotFoundError for a missing path.
    """
    path = Path(source)
    if format_ not in IMPORTERS:
        raise ValueError(f"format={format_!r} is unknown; use one of {', '.join(IMPORTERS)}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    results = IMPORTERS[format_](path)
    if not results.outcomes:
        raise ValueError(f"{path.name}: no results in the format {format_!r} were found in it")
    if prices is not None:
        listed = Catalog.from_prices(prices)
        results.prices = {m.id: (m.input_usd_per_million, m.output_usd_per_million) for m in listed}
    outcomes = pd.DataFrame(results.outcomes)
    key = [c for c in ("query_id", "model", "attempt") if c in outcomes]
    outcomes = outcomes.drop_duplicates(key, keep="last")
    outcomes, table = _priced(outcomes, results, given=prices is not None)
    if complete:
        outcomes, results.meta["left_out"] = _complete(outcomes, len(results.queries))
    kept = set(outcomes["query_id"])
    queries = pd.DataFrame([q for q in results.queries.values() if q["query_id"] in kept])
    table = table[table["model"].isin(set(outcomes["model"]))]
    tasks = queries.set_index("query_id")["task"]
    outcomes.insert(1, "task", outcomes["query_id"].map(tasks))
    meta = {"format": format_, "correct_from": CORRECT_FROM, **results.meta}
    write_recording(out, queries, outcomes.reset_index(drop=True), table, meta)


def _priced(
    outcomes: pd.DataFrame, results: Results, *, given: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Fill in costs and prices; leaves out models that have neither."""
    rows, unpriced = [], []
    for model, part in outcomes.groupby("model", sort=True):
        price = results.prices.get(str(model))
        if price is None and not given and part["cost_usd"].notna().all():
            price = fit_prices(part["input_tokens"], part["output_tokens"], part["cost_usd"])
            results.meta["prices"] = "fitted to the published costs"
        if price is None:
            unpriced.append(str(model))
        else:
            rows.append((str(model), *price))
    if not rows:
        raise ValueError(
            f"no prices for {', '.join(unpriced[:5])} …: this source has none; give "
            f"--prices with a CSV of {', '.join(PRICE_COLUMNS)}"
        )
    if unpriced:
        warnings.warn(f"left out for want of a price: {', '.join(unpriced)}", stacklevel=3)
    table = pd.DataFrame(rows, columns=list(PRICE_COLUMNS))
    outcomes = outcomes[outcomes["model"].isin(table["model"])].copy()
    charged = sum(
        outcomes[tokens] * outcomes["model"].map({row[0]: row[i] for row in rows}) / 1e6
        for i, tokens in ((1, "input_tokens"), (2, "output_tokens"))
    )
    outcomes["cost_usd"] = pd.to_numeric(outcomes["cost_usd"]).fillna(charged)
    return outcomes, table


def fit_prices(
    input_tokens: pd.Series, output_tokens: pd.Series, cost_usd: pd.Series
) -> tuple[float, float]:
    """USD per million (input, output) tokens that explain the costs best.

    Least squares; where that gives no plausible prices, one blended price for both.
    """
    tokens = np.stack([input_tokens.to_numpy(float), output_tokens.to_numpy(float)], axis=1)
    cost = cost_usd.to_numpy(float) * 1e6
    found, _, rank, _ = np.linalg.lstsq(tokens, cost, rcond=None)
    if rank < 2 or found.min() < 0:
        total = tokens.sum()
        found = np.full(2, cost.sum() / total if total else 0.0)
    return round(float(found[0]), 6), round(float(found[1]), 6)


def _complete(outcomes: pd.DataFrame, n_queries: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Drop sparse models, then unfilled queries; returns what was dropped as well."""
    answered = outcomes.groupby("model")["query_id"].nunique()
    sparse = sorted(answered.index[answered < MIN_COVERAGE * n_queries])
    if len(sparse) == len(answered):
        raise ValueError(
            f"no model answered {MIN_COVERAGE:.0%} of the {n_queries} queries (best: "
            f"{answered.max()}); import with complete=False, or give results of fewer tasks"
        )
    outcomes = outcomes[~outcomes["model"].isin(sparse)]
    models = outcomes.groupby("query_id")["model"].nunique()
    full = models.index[models == outcomes["model"].nunique()]
    if not len(full):
        raise ValueError("no query was answered by every model; import with complete=False")
    left_out = {"models": sparse, "queries": n_queries - len(full)}
    if sparse or left_out["queries"]:
        warnings.warn(
            f"left out to fill every cell: models {sparse}, {left_out['queries']} queries",
            stacklevel=3,
        )
    return outcomes[outcomes["query_id"].isin(full)], left_out


def _tokens(text: str) -> int:
    return len(text) // _CHARS_PER_TOKEN


def _outcome(
    query_id: str, model: str, answer: str | None, correct: bool, **more: Any
) -> dict[str, Any]:
    row: dict[str, Any] = {"query_id": query_id, "model": model, "answer": answer}
    return row | {"correct": int(correct), "cost_usd": None} | more


def _json(data: bytes | str, name: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{name}: not valid JSON: {error}") from None


# --- ZeroEval ----------------------------------------------------------------------------------


def read_zeroeval(path: Path) -> Results:
    """``result_dirs``: one folder per task, one JSON list per model (greedy runs only)."""
    results = Results(meta={"source": "WildEval/ZeroEval", "tokens": "characters / 4"})
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        for file in sorted(folder.glob("*.json")):
            items = _json(file.read_bytes(), file.name)
            if not isinstance(items, list):
                raise ValueError(f"{folder.name}/{file.name}: expected a list of results")
            for item in items:
                _add_zeroeval(results, folder.name, file.stem, item)
    return results


def _add_zeroeval(results: Results, task: str, model: str, item: Mapping[str, Any]) -> None:
    gold = _zeroeval_gold(item)
    output = item.get("output") or []
    if gold is None or not output:
        return
    name = str(item.get("id") or item.get("session_id"))
    query_id = f"{task}:{name}"
    prompt = "\n".join(str(part) for part in item.get("chat_history") or [])
    text = str(output[0])
    if not results.add_query(query_id, task, _zeroeval_query(item), str(item.get("answer", gold))):
        return
    answer, correct = _judge_zeroeval(task, json_answer(text), gold)
    results.outcomes.append(
        _outcome(
            query_id,
            model,
            answer,
            correct,
            text=text,
            input_tokens=_tokens(prompt),
            output_tokens=_tokens(text),
        )
    )


def _zeroeval_gold(item: Mapping[str, Any]) -> str | None:
    """The gold answer: a choice letter, or the ``answer`` field; None where there is neither."""
    choices, right = item.get("choices"), item.get("correct_answer")
    if choices and right in choices:
        return _LETTERS[list(choices).index(right)]
    answer = item.get("answer")
    return None if answer is None else str(answer)


def _zeroeval_query(item: Mapping[str, Any]) -> str:
    question = str(item.get("question") or "")
    if not question and item.get("chat_history"):
        question = str(item["chat_history"][0])
    return question + _listed(item.get("choices") or [])


def _listed(choices: Iterable[Any]) -> str:
    return "".join(f"\n{letter}. {text}" for letter, text in zip(_LETTERS, choices, strict=False))


def json_answer(text: str) -> str | None:
    """The ``answer`` of the last JSON object in a response that has one; None without any.

    Falls back on the field alone where the object is not valid JSON.
    """
    decoder = json.JSONDecoder(strict=False)
    found: str | None = None
    position = text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except ValueError:
            end = position + 1
        else:
            if isinstance(value, dict) and "answer" in value:
                answer = value["answer"]
                found = answer if isinstance(answer, str) else repr(answer)
        position = text.find("{", end)
    return _loose_answer(text) if found is None else found


_LOOSE_ANSWER = re.compile(r'"answer"\s*:\s*("(?:[^"\\\n]|\\.)*"|[^\n]*)')


def _loose_answer(text: str) -> str | None:
    """The value after ``"answer":``, unquoted, up to the end of its line."""
    matches = _LOOSE_ANSWER.findall(text)
    if not matches:
        return None
    value = matches[-1].strip().rstrip(",").strip("`").strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1].replace("\\'", "'").replace('\\"', '"')
    if value.count("}") > value.count("{"):
        value = value.removesuffix("}").rstrip()
    return value or None


def _judge_zeroeval(task: str, answer: str | None, gold: str) -> tuple[str | None, bool]:
    """(normalised answer, correct)."""
    if answer is None:
        return None, False
    if "crux" in task:
        return _judge_literal(answer, gold)
    if re.fullmatch("[A-Z]", gold):
        letter = answer.strip().strip("().")[:1].upper()
        return letter or None, letter == gold
    given, wanted = _first_number(answer), _first_number(gold)
    shown = answer.strip() if given is None else _show(given)
    return shown or None, given is not None and given == wanted


def _judge_literal(answer: str, gold: str) -> tuple[str, bool]:
    """Compare Python literals by value and type; a string may come without its quotes."""
    value, wanted = _literal(answer), _literal(gold)
    shown = value if isinstance(value, str) else repr(value)
    if isinstance(wanted, str):
        return shown, wanted in (value, answer)
    return shown, type(value) is type(wanted) and value == wanted


def _literal(text: str) -> Any:
    """A Python literal's value, or the text itself."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(text.strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _first_number(text: str) -> Fraction | None:
    found = re.search(r"-?\d+(?:\.\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?", re.sub(r"[$,#]", "", text))
    if found is None:
        return None
    top, _, bottom = found.group().partition("/")
    divisor = Fraction(bottom.strip()) if bottom else Fraction(1)
    return Fraction(top.strip()) / divisor if divisor else None


def _show(number: Fraction) -> str:
    return str(number.numerator) if number.denominator == 1 else str(float(number))


# --- RouterBench -------------------------------------------------------------------------------


def read_routerbench(path: Path) -> Results:
    """One wide table: sample_id, prompt, eval_name, and three columns per model."""
    table = _read_table(path)
    needed = {"sample_id", "prompt", "eval_name"}
    models = [c for c in table.columns if f"{c}|total_cost" in table.columns]
    if (missing := needed - set(table.columns)) or not models:
        raise ValueError(
            f"{path.name}: needs the columns {sorted(needed)}, <model> and <model>|total_cost; "
            f"missing {sorted(missing) or 'every model'}"
        )
    results = Results(meta={"source": "withmartian/routerbench", "tokens": "characters / 4"})
    for row in table.to_dict("records"):
        query_id, prompt = str(row["sample_id"]), _unlisted(row["prompt"])
        results.add_query(query_id, str(row["eval_name"]), prompt, "")
        for model in models:
            score, cost = row[model], row[f"{model}|total_cost"]
            if pd.isna(score) or pd.isna(cost):
                continue
            text = _unlisted(row.get(f"{model}|model_response", ""))
            results.outcomes.append(
                _outcome(
                    query_id,
                    model,
                    _short_answer(text),
                    float(score) >= CORRECT_FROM,
                    text=text,
                    input_tokens=_tokens(prompt),
                    output_tokens=_tokens(text),
                    cost_usd=float(cost),
                )
            )
    return results


def _read_table(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".csv":
        return pd.read_csv(path)
    if path.suffix in (".pkl", ".pickle"):
        return read_table_pickle(path)
    raise ValueError(f"{path.name}: expected a .parquet, .csv or .pkl file")


_PICKLE_GLOBALS: Mapping[str, frozenset[str]] = {
    "pandas": frozenset(
        (
            *("DataFrame", "Index", "RangeIndex", "Int64Index", "BlockManager", "StringDtype"),
            *("BooleanDtype", "ArrowStringArray", "ArrowStringArrayNumpySemantics"),
            *("StringArray", "BooleanArray"),
            *("_new_Index", "new_block", "make_block", "_unpickle_block"),
        )
    ),
    "numpy": frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"}),
    "pyarrow": frozenset({"_restore_array", "py_buffer", "type_for_alias"}),
    "builtins": frozenset({"slice", "bytearray"}),
    "_codecs": frozenset({"encode"}),
}


class _TableUnpickler(pickle_compat.Unpickler):
    """Loads tables and nothing else: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _PICKLE_GLOBALS.get(module.partition(".")[0], ()):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def read_table_pickle(path: Path) -> pd.DataFrame:
    """A pickled DataFrame, refusing pickles that hold anything but a table."""
    try:
        table = _TableUnpickler(io.BytesIO(path.read_bytes())).load()
    except (pickle.UnpicklingError, AttributeError, ImportError, EOFError, TypeError) as error:
        raise ValueError(
            f"{path.name}: not a plain pickled table ({error}); convert it to parquet with the "
            "pandas version that wrote it"
        ) from None
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"{path.name}: holds a {type(table).__name__}, not a table")
    return table


def _unlisted(value: Any) -> str:
    """RouterBench stores texts as the repr of a list of turns."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    text = str(value)
    if text[:1] == "[" and text[-1:] == "]":
        turns = _literal(text)
        if isinstance(turns, list):
            return "\n\n".join(str(turn) for turn in turns)
    return text


def _short_answer(text: str) -> str | None:
    """A response of one short line is its own answer; else the final answer found in it."""
    line = text.strip()
    if line and "\n" not in line and len(line) <= 80:
        return line
    return final_answer(text)


# --- MMLU-Pro ----------------------------------------------------------------------------------


def read_mmlu_pro(path: Path) -> Results:
    """``eval_results``: zip archives and folders, one JSON list per subject in each.

    The published input is five-shot; as the examples are not in the files, input tokens count
    the question alone.
    """
    results = Results(
        meta={"source": "TIGER-AI-Lab/MMLU-Pro", "tokens": "characters / 4, question only"}
    )
    for model, name, data in _mmlu_files(path):
        items = _json(data, name)
        if isinstance(items, list):
            for item in items:
                _add_mmlu(results, model, item, name)
    return results


def _mmlu_files(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """(model, file name, content) of every result file."""
    if path.is_file():
        yield from _mmlu_archive(path)
        return
    for entry in sorted(path.iterdir()):
        if entry.suffix == ".zip":
            yield from _mmlu_archive(entry)
        elif entry.is_dir():
            for file in sorted(entry.rglob("*.json")):
                if _is_result(file.name):
                    yield entry.name, f"{entry.name}/{file.name}", file.read_bytes()


def _mmlu_archive(path: Path) -> Iterator[tuple[str, str, bytes]]:
    model = re.sub(r"^model_outputs_|_\d+shots?$", "", path.stem)
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if _is_result(PurePosixPath(name).name):
                    yield model, f"{path.name}:{name}", archive.read(name)
    except zipfile.BadZipFile:
        raise ValueError(f"{path.name}: not a zip archive (a Git LFS pointer?)") from None


def _is_result(name: str) -> bool:
    return name.endswith(".json") and not name.startswith((".", "._")) and "summary" not in name


_MMLU_TEXT = ("model_outputs", "generated_text", "response")


def _add_mmlu(results: Results, model: str, item: Mapping[str, Any], name: str) -> None:
    try:
        question, options, gold = item["question"], item["options"], item["answer"]
        query_id, category = f"mmlu-pro:{item['question_id']}", item["category"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name}: a result lacks {error}") from None
    query = f"{question}{_listed(options)}"
    if not results.add_query(query_id, f"mmlu-pro/{category}", query, str(gold)):
        return
    text = next((str(item[k]) for k in _MMLU_TEXT if item.get(k)), "")
    answer = item.get("pred") or None
    results.outcomes.append(
        _outcome(
            query_id,
            model,
            answer,
            answer == gold,
            text=text,
            input_tokens=_tokens(query),
            output_tokens=_tokens(text),
        )
    )


# --- LLMRouterBench ----------------------------------------------------------------------------


def read_llmrouterbench(path: Path) -> Results:
    """``<dataset>/<split>/<model>/*.json`` below ``path``; of several runs the latest counts."""
    results = Results(meta={"source": "ynulihao/LLMRouterBench"})
    runs: dict[tuple[str, str, str], tuple[str, dict[str, Any]]] = {}
    for file in sorted(path.rglob("*.json")):
        data = _json(file.read_bytes(), file.name)
        if not isinstance(data, dict) or "records" not in data or data.get("demo"):
            continue
        parts = file.parent.parts[-3:]
        dataset = str(data.get("dataset_name") or parts[0])
        split = str(data.get("split") or parts[1])
        model = str(data.get("model_name") or parts[2])
        stamp = re.search(r"(\d{8}_\d{6})\.json$", file.name)
        newest = stamp.group(1) if stamp else ""
        key = (dataset, split, model)
        if key not in runs or newest >= runs[key][0]:
            runs[key] = newest, data
    for (dataset, split, model), (_, data) in runs.items():
        for record in data["records"]:
            _add_llmrouterbench(results, f"{dataset}/{split}", dataset, model, record)
    return results


def _add_llmrouterbench(
    results: Results, prefix: str, dataset: str, model: str, record: Mapping[str, Any]
) -> None:
    if record.get("score") is None:
        return
    query = str(record.get("origin_query") or record.get("prompt") or "")
    query_id = f"{prefix}:{record['index']}"
    if not results.add_query(query_id, dataset, query, str(record.get("ground_truth", ""))):
        return
    raw = record.get("raw_output")
    text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False) if raw else ""
    prediction = record.get("prediction")
    answer = None if prediction in (None, "") else str(prediction)
    results.outcomes.append(
        _outcome(
            query_id,
            model,
            answer,
            float(record["score"]) >= CORRECT_FROM,
            text=text or answer or "",
            input_tokens=int(record.get("prompt_tokens") or 0),
            output_tokens=int(record.get("completion_tokens") or 0),
            cost_usd=float(record.get("cost") or 0.0),
        )
    )


# --- RouterArena -------------------------------------------------------------------------------


def read_routerarena(path: Path) -> Results:
    """``cached_results/<model>.jsonl``; prices from ``model_cost/model_cost.json`` beside it.

    The recording is marked for evaluation only, as the arena's rules ask.
    """
    results = Results(
        meta={
            "source": "RouteWorks/RouterArena",
            "evaluation_only": True,
            "reason": "RouterArena asks that routers are not trained on its queries",
        }
    )
    for file in sorted(path.glob("*.jsonl")):
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    item = _json(line, f"{file.name}: line {number}")
                    _add_routerarena(results, file.stem, item)
    results.prices = _arena_prices(path, {row["model"] for row in results.outcomes})
    return results


def _add_routerarena(results: Results, model: str, item: Mapping[str, Any]) -> None:
    judged = item.get("evaluation_result") or {}
    if judged.get("score") is None:
        return
    query_id = str(item["global_index"])
    task = query_id.rpartition("_")[0] or query_id
    query, gold = str(item.get("question", "")), str(judged.get("ground_truth", ""))
    if not results.add_query(query_id, task, query, gold):
        return
    usage = item.get("token_usage") or {}
    text = str(item.get("generated_answer") or "")
    failed = str(item.get("error") or "no answer") if item.get("success") is False else None
    correct = failed is None and float(judged["score"]) >= CORRECT_FROM
    results.outcomes.append(
        _outcome(
            query_id,
            model,
            None if failed else final_answer(text),
            correct,
            text=text,
            attempt=int(item.get("run_number") or 1) - 1,
            input_tokens=int(usage.get("input_tokens") or 0),
            output_tokens=int(usage.get("output_tokens") or 0),
            cost_usd=float(judged.get("inference_cost") or 0.0),
            error=failed,
        )
    )


def _arena_prices(path: Path, models: set[str]) -> dict[str, tuple[float, float]]:
    """Published prices of the models; file names have ``_`` where model ids have ``/``."""
    file = path.parent / "model_cost" / "model_cost.json"
    if not file.is_file():
        return {}
    listed = {k.replace("/", "_"): v for k, v in _json(file.read_bytes(), file.name).items()}
    keys = "input_token_price_per_million", "output_token_price_per_million"
    return {
        m: (float(listed[m][keys[0]]), float(listed[m][keys[1]]))
        for m in models
        if m in listed and all(k in listed[m] for k in keys)
    }


IMPORTERS: dict[str, Callable[[Path], Results]] = {
    "zeroeval": read_zeroeval,
    "routerbench": read_routerbench,
    "mmlu-pro": read_mmlu_pro,
    "llmrouterbench": read_llmrouterbench,
    "routerarena": read_routerarena,
}
