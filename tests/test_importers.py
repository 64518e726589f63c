import json
import os
import pickle
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from xrouter.cli import app
from xrouter.fleets.importers import IMPORTERS, fit_prices, import_results, json_answer
from xrouter.fleets.recorded import RecordedFleet

PRICES = {"small": (0.5, 1.5), "big": (5.0, 15.0)}


@pytest.fixture
def prices(tmp_path) -> Path:
    path = tmp_path / "prices.csv"
    lines = [f"{m},{i},{o}" for m, (i, o) in PRICES.items()]
    path.write_text("\n".join(["model,input_usd_per_million,output_usd_per_million", *lines]))
    return path


def imported(tmp_path: Path, format_: str, source: Path, **options) -> RecordedFleet:
    import_results(format_, source, tmp_path / "out", **options)
    return RecordedFleet(tmp_path / "out", allow_missing=True)


def put(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def cell(fleet: RecordedFleet, query: str, model: str) -> tuple[str | None, bool]:
    i, j = fleet.query_ids.index(query), fleet.model_ids.index(model)
    return fleet.answers[i, j], bool(fleet.correct[i, j])


# --- ZeroEval ----------------------------------------------------------------------------------


def zeroeval_item(name: str, output: str, **more) -> dict:
    return {
        "session_id": name,
        "id": name,
        "chat_history": ["p" * 40],
        "output": [output],
        "question": f"question {name}",
    } | more


def reply(answer) -> str:
    return "```json\n" + json.dumps({"reasoning": "…", "answer": answer}) + "\n```"


def zeroeval(tmp_path: Path, task: str, gold: dict, **by_model: str) -> Path:
    for model, output in by_model.items():
        put(tmp_path / "results" / task / f"{model}.json", [zeroeval_item("#1", output, **gold)])
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("task", "gold", "output", "expected"),
    [
        ("gsm", {"answer": "# 1,200"}, reply("$1200 per year"), ("1200", True)),
        ("gsm", {"answer": "# 18"}, reply("17"), ("17", False)),
        ("gsm", {"answer": "# 18"}, reply(18), ("18", True)),
        ("gsm", {"answer": "# 18"}, "I give up", (None, False)),
        ("math-l5", {"answer": "0.5"}, reply("1/2"), ("0.5", True)),
        ("crux", {"answer": "'ab '"}, reply("ab "), ('"ab "', True)),
        ("crux", {"answer": "'ab '"}, reply("ab"), ("ab", False)),
        ("crux", {"answer": "''"}, reply(""), ('""', True)),
        ("crux", {"answer": "'7'"}, reply("7"), ("7", True)),
        ("crux", {"answer": "True"}, reply("1"), ("1", False)),
        ("crux", {"answer": "{'a': [1, 2]}"}, reply('{"a":[1,2]}'), ("{'a': [1, 2]}", True)),
        ("crux", {"answer": "[1]"}, reply("{{}: {}}"), ("{{}: {}}", False)),
        (
            "mmlu-redux",
            {"choices": ["x", "y"], "correct_answer": "y"},
            reply("B) y"),
            ("B", True),
        ),
    ],
)
def test_zeroeval_answers_are_judged(tmp_path, prices, task, gold, output, expected):
    source = zeroeval(tmp_path, task, gold, small=output, big=reply("?"))
    fleet = imported(tmp_path, "zeroeval", source, prices=prices)
    assert cell(fleet, f"{task}:#1", "small") == expected


def test_zeroeval_tokens_are_characters_over_four_at_the_given_price(tmp_path, prices):
    source = zeroeval(tmp_path, "gsm", {"answer": "# 1"}, small="x" * 80, big=reply("1"))
    row = pd.read_parquet(
        imported(tmp_path, "zeroeval", source, prices=prices).directory / "outcomes.parquet"
    )
    small = row[row.model == "small"].iloc[0]
    assert (small.input_tokens, small.output_tokens) == (10, 20)
    assert small.cost_usd == pytest.approx((10 * 0.5 + 20 * 1.5) / 1e6)


def test_zeroeval_skips_what_has_no_gold_and_folders_of_other_runs(tmp_path, prices):
    source = zeroeval(tmp_path, "gsm", {"answer": "# 1"}, small=reply("1"), big=reply("1"))
    put(source / "zebra" / "small.json", [zeroeval_item("#1", reply("1"))])
    put(source / "gsm" / "sampling" / "small.json", [zeroeval_item("#2", "x", answer="# 1")])
    assert imported(tmp_path, "zeroeval", source, prices=prices).query_ids == ("gsm:#1",)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"answer": "a"} then {"reasoning": "{", "answer": "b"}', "b"),
        ('{"reasoning": "line\nbreak", "answer": "c"}', "c"),
        ('{"reasoning": bad, "answer": "d", }', "d"),
        ("{\"answer\": 'it\\'s'", "'it\\'s'"),
        ('"answer": "\\\'x\\\'"', "'x'"),
        ('{"reasoning": bad, "answer": {"a": 1}}', '{"a": 1}'),
        ("no answer here", None),
        ("", None),
    ],
)
def test_answers_are_found_in_broken_json(text, answer):
    assert json_answer(text) == answer


@given(st.text(), st.text())
def test_answers_survive_their_json(reasoning, answer):
    assert json_answer(json.dumps({"reasoning": reasoning, "answer": answer})) == answer


# --- RouterBench -------------------------------------------------------------------------------


def routerbench() -> pd.DataFrame:
    rows = []
    for i in range(6):
        row = {
            "sample_id": f"mmlu.{i}",
            "prompt": repr([f"Question {i}? Answer A or B.", "Be brief."]),
            "eval_name": "mmlu" if i < 4 else "mtbench",
            "oracle_model_to_route_to": "small",
        }
        for model, usd in (("org/small", 1e-4), ("big", 1e-3)):
            row[model] = 1.0 if (i % 2 == 0 or model == "big") else (0.4 if i == 5 else 0.0)
            row[f"{model}|model_response"] = repr(["A" if row[model] else "B"])
            row[f"{model}|total_cost"] = usd
        rows.append(row)
    return pd.DataFrame(rows)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".pkl"])
def test_routerbench_tables_are_read_in_every_form(tmp_path, suffix):
    path = tmp_path / f"routerbench_0shot{suffix}"
    table = routerbench()
    {".parquet": table.to_parquet, ".csv": table.to_csv, ".pkl": table.to_pickle}[suffix](path)
    fleet = imported(tmp_path, "routerbench", path)
    assert fleet.model_ids == ("big", "org/small")
    assert fleet.correct[:, 1].tolist() == [True, False, True, False, True, False]
    assert fleet.cost_usd[0].tolist() == [1e-3, 1e-4]
    assert cell(fleet, "mmlu.0", "big") == ("A", True)
    assert fleet.tasks()[0].query == "Question 0? Answer A or B.\n\nBe brief."
    assert fleet.tasks()[5].source == "recorded:mtbench"


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match=r"evil.pkl: not a plain pickled table .*mkdir"):
        import_results("routerbench", path, tmp_path / "out")
    assert not (tmp_path / "owned").exists()


def test_a_pickle_of_something_else_is_refused(tmp_path):
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="holds a list, not a table"):
        import_results("routerbench", path, tmp_path / "out")


def test_a_table_without_models_is_refused(tmp_path):
    routerbench()[["sample_id", "prompt", "eval_name"]].to_csv(tmp_path / "t.csv")
    with pytest.raises(ValueError, match="missing every model"):
        import_results("routerbench", tmp_path / "t.csv", tmp_path / "out")


# --- MMLU-Pro ----------------------------------------------------------------------------------


def mmlu_items(right: bool, key: str = "model_outputs") -> list[dict]:
    return [
        {
            "question_id": 70 + i,
            "question": f"What is {i}?",
            "options": ["zero", "one", "two"],
            "answer": "ABC"[i],
            "answer_index": i,
            "category": "business",
            "pred": ("ABC"[i] if right else "A") if i < 2 else None,
            key: f"The answer is ({'ABC'[i]}).",
        }
        for i in range(3)
    ]


def test_mmlu_pro_archives_and_folders_are_read(tmp_path, prices):
    source = tmp_path / "eval_results"
    put(source / "big" / "business_result.json", mmlu_items(True, "response"))
    put(source / "big" / "business_summary.json", {"total": 1})
    with zipfile.ZipFile(source / "model_outputs_small_5shots.zip", "w") as archive:
        archive.writestr("model_outputs_small_5shots.json", json.dumps(mmlu_items(False)))
        archive.writestr("__MACOSX/._junk.json", "\0")
    fleet = imported(tmp_path, "mmlu-pro", source, prices=prices)
    assert fleet.query_ids == ("mmlu-pro:70", "mmlu-pro:71", "mmlu-pro:72")
    assert cell(fleet, "mmlu-pro:71", "big") == ("B", True)
    assert cell(fleet, "mmlu-pro:71", "small") == ("A", False)
    assert cell(fleet, "mmlu-pro:72", "big") == (None, False)
    assert "\nB. one" in fleet.tasks()[0].query
    assert fleet.tasks()[0].source == "recorded:mmlu-pro/business"


def test_an_archive_that_is_a_pointer_is_named(tmp_path, prices):
    (tmp_path / "model_outputs_x_5shots.zip").write_text("version https://git-lfs…")
    with pytest.raises(ValueError, match=r"model_outputs_x_5shots\.zip: not a zip archive"):
        import_results("mmlu-pro", tmp_path, tmp_path / "out", prices=prices)


# --- LLMRouterBench ----------------------------------------------------------------------------


def bench_record(index: int, score: float | None, **more) -> dict:
    return {
        "index": index,
        "origin_query": f"Question {index}",
        "prompt": f"Q: Question {index}",
        "prediction": "4" if score else "5",
        "ground_truth": "4",
        "score": score,
        "prompt_tokens": 100 + index,
        "completion_tokens": 10 * index + 5,
        "cost": ((100 + index) * 0.5 + (10 * index + 5) * 1.5) / 1e6,
        "raw_output": "The answer is 4." if score else {"text": "5"},
    } | more


def bench(tmp_path: Path, model: str, stamp: str, scores: list, **more) -> Path:
    records = [bench_record(i + 1, s) for i, s in enumerate(scores)]
    name = f"aime-test-{model}-{stamp}.json"
    put(
        tmp_path / "bench" / "aime" / "test" / model / name,
        {"model_name": model, "dataset_name": "aime", "split": "test", "records": records} | more,
    )
    return tmp_path / "bench"


def test_llmrouterbench_takes_the_latest_run_that_is_no_demo(tmp_path):
    bench(tmp_path, "small", "20250101_000000", [0.0, 0.0])
    bench(tmp_path, "small", "20250301_000000", [0.0, 0.0], demo=True)
    bench(tmp_path, "small", "20250201_000000", [1.0, 0.0])
    source = bench(tmp_path, "big", "20250101_000000", [1.0, 1.0])
    fleet = imported(tmp_path, "llmrouterbench", source)
    assert fleet.correct.tolist() == [[True, True], [True, False]]
    assert fleet.query_ids == ("aime/test:1", "aime/test:2")
    assert fleet.catalog["small"].input_usd_per_million == pytest.approx(0.5, abs=1e-4)
    assert fleet.catalog["small"].output_usd_per_million == pytest.approx(1.5, abs=1e-3)


def test_llmrouterbench_leaves_out_ungraded_records_and_then_the_unfilled_query(tmp_path):
    bench(tmp_path, "small", "20250101_000000", [1.0] * 19 + [None])
    source = bench(tmp_path, "big", "20250101_000000", [1.0] * 20)
    with pytest.warns(UserWarning, match=r"models \[\], 1 queries"):
        fleet = imported(tmp_path, "llmrouterbench", source)
    assert len(fleet.query_ids) == 19
    assert not len(fleet.missing())
    assert fleet.meta["left_out"] == {"models": [], "queries": 1}


# --- RouterArena -------------------------------------------------------------------------------


def arena(tmp_path: Path) -> Path:
    folder = tmp_path / "cached_results"
    folder.mkdir()
    for model, scores in {"org_small": [0.0, 1.0], "big": [1.0, None]}.items():
        lines = [
            {
                "global_index": f"AIME_{i}",
                "question": f"Question {i}",
                "generated_answer": f"Thus \\boxed{{{i if score else 9}}}.",
                "token_usage": {"input_tokens": 10, "output_tokens": 20},
                "success": True,
                "error": None,
                "evaluation_result": {
                    "score": score,
                    "ground_truth": str(i),
                    "inference_cost": 1e-4,
                },
                "run_number": 1,
            }
            for i, score in enumerate(scores)
        ]
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / f"{model}.jsonl").write_text(text + "\n\n")
    return folder


def test_routerarena_is_imported_for_evaluation_only(tmp_path):
    fleet = imported(tmp_path, "routerarena", arena(tmp_path), complete=False)
    assert cell(fleet, "AIME_0", "big") == ("0", True)
    assert cell(fleet, "AIME_0", "org_small") == ("9", False)
    assert fleet.missing()["model"].tolist() == ["big"]
    assert fleet.tasks()[0].source == "recorded:AIME"
    with pytest.raises(ValueError, match="evaluation only"):
        fleet.require_trainable()


def test_routerarena_takes_the_published_prices_beside_it(tmp_path):
    folder = arena(tmp_path)
    listed = {"input_token_price_per_million": 2.0, "output_token_price_per_million": 8.0}
    put(tmp_path / "model_cost" / "model_cost.json", {"org/small": listed})
    fleet = imported(tmp_path, "routerarena", folder, complete=False)
    assert fleet.catalog["org_small"].output_usd_per_million == 8.0


# --- completeness, prices, refusals ------------------------------------------------------------


def test_sparse_models_are_left_out_before_queries_are(tmp_path):
    bench(tmp_path, "sparse", "20250101_000000", [1.0] * 5)
    bench(tmp_path, "small", "20250101_000000", [1.0] * 20)
    source = bench(tmp_path, "big", "20250101_000000", [1.0] * 20)
    with pytest.warns(UserWarning, match=r"models \['sparse'\], 0 queries"):
        fleet = imported(tmp_path, "llmrouterbench", source)
    assert fleet.model_ids == ("big", "small")
    whole = imported(tmp_path, "llmrouterbench", source, complete=False)
    assert len(whole.missing()) == 15


def test_models_without_a_price_are_left_out_and_named(tmp_path, prices):
    source = zeroeval(
        tmp_path, "gsm", {"answer": "# 1"}, small=reply("1"), big=reply("1"), other=reply("1")
    )
    with pytest.warns(UserWarning, match="want of a price: other"):
        fleet = imported(tmp_path, "zeroeval", source, prices=prices)
    assert fleet.model_ids == ("big", "small")


def test_a_source_without_prices_asks_for_them(tmp_path):
    source = zeroeval(tmp_path, "gsm", {"answer": "# 1"}, small=reply("1"))
    with pytest.raises(ValueError, match=r"no prices for small .*--prices with a CSV of model"):
        import_results("zeroeval", source, tmp_path / "out")


def test_prices_are_recovered_from_costs_or_blended():
    tokens = pd.Series([100, 200, 50, 400]), pd.Series([10, 500, 300, 20])
    cost = (tokens[0] * 0.25 + tokens[1] * 1.25) / 1e6
    assert fit_prices(*tokens, cost) == pytest.approx((0.25, 1.25), abs=1e-6)
    one = pd.Series([100.0]), pd.Series([300.0]), pd.Series([4e-4])
    assert fit_prices(*one) == (1.0, 1.0)
    nothing = pd.Series([0.0]), pd.Series([0.0]), pd.Series([1.0])
    assert fit_prices(*nothing) == (0.0, 0.0)


def test_the_same_id_with_another_text_is_not_the_same_query(tmp_path):
    bench(tmp_path, "small", "20250101_000000", [1.0] * 10)
    source = bench(tmp_path, "big", "20250101_000000", [1.0] * 10)
    file = next((source / "aime" / "test" / "small").glob("*.json"))
    data = json.loads(file.read_text())
    data["records"][0]["origin_query"] = "Something else"
    put(file, data)
    with pytest.warns(UserWarning, match="1 queries"):
        assert len(imported(tmp_path, "llmrouterbench", source).query_ids) == 9


@pytest.mark.parametrize("format_", IMPORTERS)
def test_an_empty_folder_has_no_results(tmp_path, format_):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        import_results(format_, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_formats_and_missing_paths_are_named(tmp_path):
    with pytest.raises(ValueError, match="format='xls' is unknown; use one of zeroeval, routerb"):
        import_results("xls", tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        import_results("zeroeval", tmp_path / "nowhere", tmp_path / "out")


def test_the_commands_import_and_describe(tmp_path):
    bench(tmp_path, "small", "20250101_000000", [1.0, 0.0])
    source = bench(tmp_path, "big", "20250101_000000", [1.0, 1.0])
    out = str(tmp_path / "out")
    runner = CliRunner()
    done = runner.invoke(app, ["recorded", "import", "llmrouterbench", str(source), "--out", out])
    assert done.exit_code == 0, done.output
    shown = runner.invoke(app, ["recorded", "describe", out, "--json", str(tmp_path / "d.json")])
    assert shown.exit_code == 0, shown.output
    assert "best single: big, 100.0 %" in shown.output
    info = json.loads((tmp_path / "d.json").read_text())
    assert (info["queries"], info["missing_cells"], len(info["models"])) == (2, 0, 2)
