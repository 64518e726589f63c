import asyncio
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_recordings import frames, recording, write

from xrouter.data.splits import split_tasks
from xrouter.episode import Completion, Task
from xrouter.fleets.recorded import (
    RecordedFleet,
    describe,
    domain_of,
    visible_answer,
    write_recording,
)
from xrouter.orchestrator import FleetRequest
from xrouter.verifiers import score

ZEROEVAL = Path(__file__).parents[2] / "shared" / "data" / "zeroeval"


def answer(fleet: RecordedFleet, query_id: str, model: str, **request) -> Completion:
    task = next(t for t in fleet.tasks() if t.id == query_id)
    return asyncio.run(fleet.complete(FleetRequest(task, model, **request)))


def with_answer(tmp_path: Path, value: str | None, correct: int, **columns) -> RecordedFleet:
    queries, outcomes, prices = frames(n=2)
    outcomes.loc[0, ["answer", "correct"]] = [value, correct]
    for name, content in columns.items():
        outcomes[name] = content
    return RecordedFleet(write(tmp_path / "r", queries, outcomes, prices))


# --- replay ------------------------------------------------------------------------------------


def test_a_call_returns_what_was_recorded(tmp_path):
    queries, outcomes, prices = frames()
    fleet = RecordedFleet(write(tmp_path / "r", queries, outcomes, prices))
    row = outcomes.iloc[17]
    done = answer(fleet, row.query_id, row.model)
    assert (done.model, done.answer, done.text) == (row.model, row.answer, row.answer)
    assert (done.input_tokens, done.output_tokens) == (row.input_tokens, row.output_tokens)
    assert done.cost_usd == row.cost_usd


def test_dense_views_hold_the_same_as_the_rows(tmp_path):
    queries, outcomes, prices = frames()
    fleet = RecordedFleet(
        write(tmp_path / "r", queries, outcomes.sample(frac=1, random_state=1), prices)
    )
    for row in outcomes.itertuples():
        i, j = fleet.query_ids.index(row.query_id), fleet.model_ids.index(row.model)
        assert fleet.correct[i, j] == bool(row.correct)
        assert fleet.cost_usd[i, j] == row.cost_usd
        assert fleet.answers[i, j] == row.answer


def test_equal_answer_codes_mean_equal_answers(tmp_path):
    fleet = RecordedFleet(recording(tmp_path / "r"))
    same = fleet.answer_code[:, 0] == fleet.answer_code[:, 1]
    assert same.any()
    assert not same.all()
    assert (same == (fleet.answers[:, 0] == fleet.answers[:, 1])).all()


def test_scores_of_replayed_answers_equal_the_recorded_correctness(tmp_path):
    fleet = RecordedFleet(recording(tmp_path / "r"))
    for i, task in enumerate(fleet.tasks()):
        for j, model in enumerate(fleet.model_ids):
            assert score(task, answer(fleet, task.id, model).text) == fleet.correct[i, j]


@pytest.mark.skipif(not ZEROEVAL.is_dir(), reason="the shared recording is not here")
def test_scores_equal_recorded_correctness_on_the_shared_recording():
    fleet = RecordedFleet(ZEROEVAL)
    tasks = fleet.tasks()
    marks = np.array(
        [[score(t, fleet.answers[i, j] or "") for j in range(26)] for i, t in enumerate(tasks)]
    )
    assert (marks == fleet.correct).all()
    info = describe(fleet)
    assert info["best_single"]["model"] == "claude-3-5-sonnet-20241022"
    assert info["missing_cells"] == 0


def test_null_is_no_answer_but_an_empty_string_is_one(tmp_path):
    assert with_answer(tmp_path / "a", None, 0).answers[0, 0] is None
    empty = with_answer(tmp_path / "b", "", 1)
    done = answer(empty, "gsm:q0", "tiny")
    assert done.answer == done.text == '""'
    assert score(empty.tasks()[0], done.text) == 1.0


def test_padding_distinguishes_answers(tmp_path):
    fleet = with_answer(tmp_path, " 7", 1)
    task = fleet.tasks()[0]
    assert score(task, answer(fleet, "gsm:q0", "tiny").text) == 1.0
    assert score(task, "7") == 0.0


@given(st.text(), st.text())
def test_visible_answers_are_injective_and_survive_strip(a, b):
    assert visible_answer(a).strip() == visible_answer(a) != ""
    assert (visible_answer(a) == visible_answer(b)) == (a == b)


def test_the_stored_text_is_what_the_policy_reads_and_what_is_scored(tmp_path):
    queries, outcomes, prices = frames(n=2)
    outcomes["text"] = "I think it is " + outcomes["answer"] + "."
    fleet = RecordedFleet(write(tmp_path / "r", queries, outcomes, prices))
    for j, model in enumerate(fleet.model_ids):
        done = answer(fleet, "gsm:q0", model)
        assert done.text.startswith("I think")
        assert score(fleet.tasks()[0], done.text) == fleet.correct[0, j]


def test_optional_columns_reach_the_completion(tmp_path):
    fleet = with_answer(tmp_path, "5", 1, latency_s=1.5, finish_reason="length")
    done = answer(fleet, "gsm:q0", "tiny")
    assert (done.latency_s, done.finish_reason) == (1.5, "length")


def test_a_recorded_error_is_a_failed_call(tmp_path):
    queries, outcomes, prices = frames(n=2)
    outcomes["error"] = pd.Series([None] * len(outcomes), dtype=object)
    outcomes.loc[0, ["error", "correct"]] = ["HTTP 500", 0]
    fleet = RecordedFleet(write(tmp_path / "r", queries, outcomes, prices))
    assert not answer(fleet, "gsm:q0", "tiny").ok
    assert answer(fleet, "gsm:q0", "small").ok


def test_samples_are_taken_in_turn(tmp_path):
    queries, outcomes, prices = frames(n=2)
    samples = [outcomes.assign(attempt=k, answer=f"sample {k}", correct=0) for k in (2, 0, 1)]
    fleet = RecordedFleet(write(tmp_path / "r", queries, pd.concat(samples), prices))
    taken = [answer(fleet, "gsm:q0", "tiny", attempt=k).answer for k in range(4)]
    assert taken == ["sample 0", "sample 1", "sample 2", "sample 0"]
    assert answer(fleet, "gsm:q0", "tiny", attempt=1, seed=1).answer == "sample 2"


# --- pools and tasks ---------------------------------------------------------------------------


def test_models_restrict_and_order_the_fleet(tmp_path):
    fleet = RecordedFleet(recording(tmp_path / "r"), models=["large", "tiny"])
    assert tuple(fleet.catalog.models) == fleet.model_ids == ("large", "tiny")
    assert fleet.correct.shape == (80, 2)
    with pytest.raises(LookupError, match="'small' is not in this fleet"):
        answer(fleet, "gsm:q0", "small")


def test_tasks_hide_the_gold_and_the_right_answers_from_policies(tmp_path):
    task = RecordedFleet(recording(tmp_path / "r")).tasks()[0]
    assert task.gold == "# 0"
    assert "0" in task.metadata["correct_answers"]
    public = task.public()
    assert not public.gold
    assert not public.metadata
    assert public.source == "recorded:gsm"


def test_difficulty_is_the_share_of_models_that_fail(tmp_path):
    fleet = RecordedFleet(recording(tmp_path / "r"))
    shares = [t.difficulty for t in fleet.tasks()]
    assert shares == pytest.approx(1 - fleet.correct.mean(axis=1))


@pytest.mark.parametrize(
    ("name", "domain"),
    [("gsm", "math"), ("math-l5", "math"), ("crux", "code"), ("mmlu-pro/law", "stem"),
     ("logic", "logic"), ("FinQA", "table"), ("mt-bench", "chat")],
)  # fmt: skip
def test_benchmarks_map_to_domains(name, domain):
    assert domain_of(name) == domain


# --- refusals ----------------------------------------------------------------------------------


def broken(tmp_path: Path, change) -> Path:
    queries, outcomes, prices = frames(n=3)
    queries, outcomes, prices = change(queries, outcomes, prices)
    return write(tmp_path / "r", queries, outcomes, prices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda q, o, p: (q.drop(columns="gold"), o, p),
            r"queries.parquet: column\(s\) \['gold'\]",
        ),
        (lambda q, o, p: (q, o.drop(columns="correct"), p), r"column\(s\) \['correct'\]"),
        (lambda q, o, p: (pd.concat([q, q[:1]]), o, p), "queries.parquet: 1 repeated rows"),
        (lambda q, o, p: (q, pd.concat([o, o[:2]]), p), "outcomes.parquet: 2 repeated rows"),
        (lambda q, o, p: (q, o, p[:3]), "model='large' .no price"),
        (lambda q, o, p: (q[1:], o, p), "query_id='gsm:q0' .not in queries"),
        (lambda q, o, p: (q, o.assign(cost_usd=-1.0), p), r"cost_usd=.*-1.0.* \(negative"),
        (lambda q, o, p: (q, o.assign(cost_usd=np.nan), p), "cost_usd=.*not a number"),
        (lambda q, o, p: (q, o.assign(correct=0.5), p), "neither 0 nor 1"),
        (lambda q, o, p: (q, o[:0], p), "outcomes.parquet: has no rows"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_and_an_example(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        RecordedFleet(broken(tmp_path, change))


@pytest.mark.parametrize("name", ["queries.parquet", "outcomes.parquet", "prices.csv"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = recording(tmp_path / "r", n=2)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        RecordedFleet(folder)


def test_missing_cells_are_refused_unless_allowed(tmp_path):
    queries, outcomes, prices = frames(n=3)
    folder = write(tmp_path / "r", queries, outcomes.drop(index=[5, 9]), prices)
    with pytest.raises(
        ValueError, match=r"2 of 24 cells have no outcome, first 'gsm:q1' × 'small'"
    ):
        RecordedFleet(folder)
    fleet = RecordedFleet(folder, allow_missing=True)
    assert fleet.missing().to_dict("records") == [
        {"query_id": "gsm:q1", "task": "gsm", "model": "small"},
        {"query_id": "gsm:q2", "task": "gsm", "model": "small"},
    ]
    with pytest.raises(LookupError, match=r"'small' for query 'gsm:q1'; 2 of 24 cells"):
        answer(fleet, "gsm:q1", "small")
    assert fleet.cost_usd[1, 1] == 0.0
    assert not fleet.correct[1, 1]


def test_a_foreign_task_is_a_clear_error(tmp_path):
    fleet = RecordedFleet(recording(tmp_path / "r", n=2))
    with pytest.raises(LookupError, match="query 'elsewhere' is not in this recording"):
        asyncio.run(fleet.complete(FleetRequest(Task("elsewhere", "?"), "tiny")))


def test_unknown_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\['gpt-9'\] are not in r/prices.csv"):
        RecordedFleet(recording(tmp_path / "r", n=2), models=["tiny", "gpt-9"])


def test_successes_without_any_text_count_as_wrong_and_are_reported(tmp_path):
    with pytest.warns(UserWarning, match="1 rows are marked correct but have neither"):
        fleet = with_answer(tmp_path, None, 1)
    assert not fleet.correct[0, 0]


def test_an_evaluation_only_recording_refuses_training(tmp_path):
    write_recording(tmp_path / "r", *frames(n=2), {"evaluation_only": True, "reason": "its rules"})
    fleet = RecordedFleet(tmp_path / "r")
    with pytest.raises(ValueError, match=r"evaluation only \(its rules\)"):
        fleet.require_trainable()
    plain = RecordedFleet(recording(tmp_path / "s", n=2))
    assert plain.require_trainable() is plain


def test_description_agrees_with_the_rows(tmp_path):
    queries, outcomes, prices = frames()
    info = describe(RecordedFleet(write(tmp_path / "r", queries, outcomes, prices)))
    means = outcomes.groupby("model")["correct"].mean()
    assert info["best_single"]["model"] == means.idxmax()
    assert info["best_single"]["accuracy"] == pytest.approx(means.max())
    solved = outcomes.groupby("query_id")["correct"].max().mean()
    assert info["oracle"]["accuracy"] == pytest.approx(solved)
    assert info["oracle"]["usd_per_1k"] <= info["best_single"]["usd_per_1k"]
    json.dumps(info)


# --- splits ------------------------------------------------------------------------------------


def make_tasks(sizes: list[int]) -> list[Task]:
    return [
        Task(f"{s}-{i}", "?", source=f"source{s}") for s, n in enumerate(sizes) for i in range(n)
    ]


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
    st.integers(0, 5),
    st.sampled_from([{"a": 0.5, "b": 0.5}, {"x": 0.7, "y": 0.2, "z": 0.1}]),
)
def test_splits_partition_and_keep_the_mix_of_sources(sizes, seed, fractions):
    tasks = make_tasks(sizes)
    parts = split_tasks(tasks, seed, fractions)
    assert sorted(t.id for part in parts.values() for t in part) == sorted(t.id for t in tasks)
    for s, n in enumerate(sizes):
        for name, share in fractions.items():
            here = sum(t.source == f"source{s}" for t in parts[name])
            assert abs(here - share * n) <= 1.0


def test_membership_does_not_depend_on_order_but_on_the_seed():
    tasks = make_tasks([20, 20])
    first = split_tasks(tasks, 3)
    again = split_tasks(tasks[::-1], 3)
    other = split_tasks(tasks, 4)
    ids = {k: {t.id for t in v} for k, v in first.items()}
    assert ids == {k: {t.id for t in v} for k, v in again.items()}
    assert ids != {k: {t.id for t in v} for k, v in other.items()}


@pytest.mark.parametrize(
    ("fractions", "message"),
    [({"a": 0.5, "b": 0.6}, "sum to 1"), ({"a": 1.5, "b": -0.5}, "positive")],
)
def test_bad_fractions_are_refused(fractions, message):
    with pytest.raises(ValueError, match=message):
        split_tasks(make_tasks([4]), 0, fractions)


def test_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="1 of 5 ids are repeated"):
        split_tasks([*make_tasks([4]), Task("0-0", "?", source="elsewhere")])
