import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_recordings import frames, recording, write
from typer.testing import CliRunner

from xrouter.cli import app
from xrouter.episode import (
    Attempt,
    Completion,
    Decision,
    Episode,
    Task,
    TokenTrace,
    ToolCall,
    ToolResult,
    Turn,
)
from xrouter.evaluation.console import write_result
from xrouter.evaluation.routing import evaluate_routing
from xrouter.evaluation.runner import (
    episode_from_dict,
    evaluate,
    read_episodes,
    save_frame,
    to_frame,
)
from xrouter.evaluation.runs import Run
from xrouter.evaluation.stats import summarize
from xrouter.fleets.recorded import RecordedFleet, write_recording
from xrouter.orchestrator import Orchestrator
from xrouter.outcomes import OutcomeTable, collect_outcomes, recorded_table
from xrouter.policies.baselines import AgreementCascade, RandomModel, SingleModel, make_policy

TESTS = Path(__file__).parent


@pytest.fixture
def fleet(tmp_path) -> RecordedFleet:
    return RecordedFleet(recording(tmp_path / "recording"))


class Counting:
    """Counts the decisions of a policy."""

    def __init__(self, policy) -> None:
        self.name, self.policy, self.decisions = policy.name, policy, 0

    async def decide(self, state):
        self.decisions += 1
        return await self.policy.decide(state)


# --- outcome tables ----------------------------------------------------------------------------


class Plain:
    """The same recording behind nothing but the fleet protocol."""

    world = "recorded"

    def __init__(self, fleet: RecordedFleet) -> None:
        self.catalog, self.complete = fleet.catalog, fleet.complete


def test_collecting_through_the_protocol_equals_the_fast_path(fleet):
    tasks = fleet.tasks()[:20]
    slow, fast = (
        asyncio.run(collect_outcomes(f, tasks, ["large", "tiny"])) for f in (Plain(fleet), fleet)
    )
    assert slow.models == fast.models == ("large", "tiny")
    assert (slow.quality == fast.quality).all()
    assert (slow.cost_usd == fast.cost_usd).all()
    assert (slow.answers == fast.answers).all()


def test_a_failing_model_is_an_outcome_of_quality_zero(tmp_path):
    queries, outcomes, prices = frames(n=3)
    folder = write(tmp_path / "r", queries, outcomes[outcomes.model != "large"], prices)
    fleet = RecordedFleet(folder, allow_missing=True)
    for source in (fleet, Plain(fleet)):
        table = asyncio.run(collect_outcomes(source, fleet.tasks()))
        assert table.quality[:, 3].tolist() == [0.0] * 6
        assert table.cost_usd[:, 3].tolist() == [0.0] * 6


def test_table_selection_keeps_rows_and_columns_together(fleet):
    table = recorded_table(fleet, fleet.tasks())
    part = table.rows([5, 2]).select(["large", "tiny"])
    assert [t.id for t in part.tasks] == [fleet.query_ids[5], fleet.query_ids[2]]
    assert part.quality[0, 0] == table.quality[5, 3]
    assert part.answers[1, 1] == table.answers[2, 0]
    with pytest.raises(ValueError, match="'gpt-9' is not in the outcome table"):
        table.select(["gpt-9"])


def test_the_best_single_model_breaks_ties_by_cost():
    tasks = (Task("a", "?"), Task("b", "?"))
    quality = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    cost = np.array([[3.0, 2.0, 4.0], [3.0, 2.0, 4.0]])
    table = OutcomeTable(tasks, ("x", "y", "z"), quality, cost, np.full((2, 3), None, object))
    assert table.best_single() == 1
    assert table.oracle().tolist() == [0, 1]
    assert table.reference_usd() == 2.0


def test_a_table_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"cost_usd has shape \(1, 1\), expected \(1, 2\)"):
        OutcomeTable(
            (Task("a", "?"),), ("x", "y"), np.ones((1, 2)), np.ones((1, 1)), np.ones((1, 2), object)
        )


# --- the runner --------------------------------------------------------------------------------


def test_every_episode_is_scored_and_in_task_order(fleet):
    tasks = fleet.tasks()[::-1]
    episodes = evaluate(SingleModel("medium"), fleet, tasks)
    assert [e.task_id for e in episodes] == [t.id for t in tasks]
    assert [e.quality for e in episodes] == fleet.correct[::-1, 2].tolist()


@pytest.mark.parametrize("concurrency", [1, 7, 500])
def test_results_do_not_depend_on_concurrency(fleet, concurrency):
    policy = AgreementCascade(["tiny", "small", "large"])
    found = evaluate(policy, fleet, fleet.tasks(), concurrency=concurrency)
    expected = evaluate(policy, fleet, fleet.tasks())
    assert [replace(e, wall_s=0, turns=()) for e in found] == [
        replace(e, wall_s=0, turns=()) for e in expected
    ]


def test_at_most_concurrency_episodes_are_in_flight(fleet):
    class Slow:
        name, running, peak = "slow", 0, 0

        async def decide(self, state):
            self.running += 1
            self.peak = max(self.peak, self.running)
            await asyncio.sleep(0.001)
            self.running -= 1
            return await SingleModel("tiny").decide(state)

    policy = Slow()
    evaluate(policy, fleet, fleet.tasks(), concurrency=5)
    assert policy.peak == 5


def test_it_works_inside_a_running_event_loop(fleet):
    async def notebook() -> list[Episode]:
        return evaluate(SingleModel("tiny"), fleet, fleet.tasks()[:3])

    assert len(asyncio.run(notebook())) == 3


def test_replay_runs_thousands_of_episodes_per_second(fleet):
    policy, tasks = SingleModel("medium"), fleet.tasks()
    evaluate(policy, fleet, tasks)
    rates = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(5):
            evaluate(policy, fleet, tasks)
        rates.append(5 * len(tasks) / (time.process_time() - started))
    assert max(rates) > 2000


def test_a_policy_that_always_fails_is_an_error_and_one_that_sometimes_does_a_warning(fleet):
    with pytest.raises(ValueError, match=r"failed in 80 of 80 episodes, first: ValueError: model"):
        evaluate(SingleModel("gpt-9"), fleet, fleet.tasks())

    class Moody(SingleModel):
        async def decide(self, state):
            if state.task.id == "gsm:q3":
                raise RuntimeError("not today")
            return await super().decide(state)

    with pytest.warns(UserWarning, match="failed in 1 of 80 episodes, first: RuntimeError: not t"):
        episodes = evaluate(Moody("tiny"), fleet, fleet.tasks())
    assert episodes[3].quality == 0.0


def test_repeated_task_ids_are_refused(fleet):
    with pytest.raises(ValueError, match="repeated ids"):
        evaluate(SingleModel("tiny"), fleet, fleet.tasks()[:1] * 2)


# --- resuming ----------------------------------------------------------------------------------


def test_finished_episodes_are_not_run_again(fleet, tmp_path):
    policy, out, tasks = Counting(SingleModel("tiny")), tmp_path / "e.jsonl", fleet.tasks()
    first = evaluate(policy, fleet, tasks[:30], out=out)
    second = evaluate(policy, fleet, tasks, out=out)
    assert policy.decisions == len(tasks)
    assert second[:30] == first
    assert len(out.read_text().splitlines()) == len(tasks)


@pytest.mark.parametrize(
    "change",
    [{"cost_weight": 0.5}, {"seed": 1}, {"pool": ["tiny"]}, {"fleet": "simple"}],
)
def test_episodes_of_another_setting_do_not_count(fleet, tmp_path, change):
    out, tasks = tmp_path / "e.jsonl", fleet.tasks()[:5]
    evaluate(SingleModel("tiny"), fleet, tasks, out=out)
    policy = Counting(SingleModel("tiny"))
    target = Orchestrator(fleet, mode="simple") if change.pop("fleet", None) else fleet
    evaluate(policy, target, tasks, out=out, **change)
    assert policy.decisions == 5


def test_a_torn_last_line_is_dropped_and_run_again(fleet, tmp_path):
    out, tasks = tmp_path / "e.jsonl", fleet.tasks()[:10]
    whole = evaluate(SingleModel("tiny"), fleet, tasks, out=out)
    data = out.read_bytes()
    out.write_bytes(data[: len(data) - 40])
    policy = Counting(SingleModel("tiny"))
    again = evaluate(policy, fleet, tasks, out=out)
    assert policy.decisions == 1
    assert [e.quality for e in again] == [e.quality for e in whole]
    assert len(read_episodes(out)) == 10


def test_damage_in_the_middle_is_an_error_that_names_the_line(fleet, tmp_path):
    out = tmp_path / "e.jsonl"
    evaluate(SingleModel("tiny"), fleet, fleet.tasks()[:3], out=out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text(lines[0] + "{broken\n" + lines[2])
    with pytest.raises(ValueError, match="line 2 is not an episode"):
        evaluate(SingleModel("tiny"), fleet, fleet.tasks()[:3], out=out)


KILLED = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from xrouter.evaluation.runner import evaluate
from xrouter.fleets.recorded import RecordedFleet
from xrouter.policies.baselines import SingleModel

class Slow(SingleModel):
    async def decide(self, state):
        await asyncio.sleep(0.01)
        return await super().decide(state)

fleet = RecordedFleet({folder!r})
evaluate(Slow("tiny"), fleet, fleet.tasks(), out={out!r}, concurrency=2)
"""


def test_an_evaluation_killed_with_sigkill_resumes_to_the_same_result(fleet, tmp_path):
    out = tmp_path / "e.jsonl"
    script = KILLED.format(tests=str(TESTS), folder=str(fleet.directory), out=str(out))
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (out.exists() and out.stat().st_size > 5000):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    saved = len(read_episodes(out))
    assert 0 < saved < 80
    policy = Counting(SingleModel("tiny"))
    episodes = evaluate(policy, fleet, fleet.tasks(), out=out)
    assert policy.decisions == 80 - saved
    assert [e.quality for e in episodes] == fleet.correct[:, 0].tolist()


texts = st.text(max_size=8)
completions = st.builds(
    Completion,
    texts,
    texts,
    st.none() | texts,
    st.integers(0, 9),
    cost_usd=st.floats(0, 1),
    attempts=st.lists(st.builds(Attempt, texts, st.integers(0, 9)), max_size=1).map(tuple),
    choices=st.just(({"index": 0},)),
)
calls = st.builds(ToolCall, texts, st.dictionaries(texts, st.integers() | texts, max_size=2), texts)
decisions = st.builds(
    Decision,
    texts,
    st.lists(calls, max_size=2).map(tuple),
    st.lists(texts, max_size=1).map(tuple),
    trace=st.none() | st.builds(TokenTrace, st.just((1, 2)), st.just((3,)), st.just((-0.5,))),
)
results = st.builds(ToolResult, calls, st.none() | completions, st.none() | texts)
turns = st.builds(Turn, st.integers(0, 3), decisions, st.lists(results, max_size=2).map(tuple))
episodes = st.builds(
    Episode,
    texts,
    texts,
    st.just("recorded"),
    st.just("agent"),
    st.lists(texts, max_size=2).map(tuple),
    st.lists(turns, max_size=2).map(tuple),
    texts,
    st.just("select"),
    st.none() | texts,
    st.just("selected"),
    quality=st.none() | st.floats(0, 1),
)


@settings(max_examples=50)
@given(episodes)
def test_an_episode_survives_its_journal(episode):
    assert episode_from_dict(json.loads(json.dumps(episode.to_dict()))) == episode


# --- frames and summaries ----------------------------------------------------------------------


def test_the_frame_tells_the_route_and_adds_up(fleet):
    episodes = evaluate(AgreementCascade(["tiny", "small", "large"]), fleet, fleet.tasks())
    frame = to_frame(episodes, fleet.tasks())
    assert set(frame["route"]) == {"tiny+small", "tiny+small>large"}
    assert set(frame["models"]) == {"tiny,small", "tiny,small,large"}
    assert frame["cost_usd"].tolist() == [e.cost_usd for e in episodes]
    assert (frame["world"] == "recorded").all()
    assert set(frame["task"]) == {"gsm", "crux"}
    assert frame["calls"].sum() == sum(len(e.calls) for e in episodes)


def test_an_empty_frame_has_all_columns_and_no_summary():
    frame = to_frame([], [])
    assert {"task_id", "quality", "cost_usd", "route"} <= set(frame.columns)
    with pytest.raises(ValueError, match="no episodes"):
        summarize(frame)


def test_summaries_add_up(fleet):
    frame = to_frame(evaluate(RandomModel(), fleet, fleet.tasks()), fleet.tasks())
    summary = summarize(frame)
    assert summary["accuracy"] == frame["quality"].mean()
    assert summary["usd_per_1k"] == pytest.approx(1e3 * frame["cost_usd"].mean())
    assert sum(summary["routing_share"].values()) == pytest.approx(1.0)
    parts = summary["by_task"].values()
    assert sum(p["n"] * p["accuracy"] for p in parts) / 80 == pytest.approx(summary["accuracy"])
    interval = summary["intervals"]["accuracy"]
    assert interval["low"] < summary["accuracy"] < interval["high"]


def test_saved_frames_read_back_in_both_formats(fleet, tmp_path):
    frame = to_frame(evaluate(SingleModel("tiny"), fleet, fleet.tasks()), fleet.tasks())
    paths = save_frame(frame, tmp_path / "results" / "tiny", {"seed": 0})
    assert [p.name for p in paths] == ["tiny.parquet", "tiny.csv", "tiny.provenance.json"]
    pd.testing.assert_frame_equal(pd.read_parquet(paths[0]), frame)
    assert pd.read_csv(paths[1])["cost_usd"].tolist() == frame["cost_usd"].tolist()


def test_results_that_are_not_finite_become_null(tmp_path):
    write_result(tmp_path / "r.json", {"a": [float("nan"), {"b": float("inf")}], "c": 1.5})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": [None, {"b": None}], "c": 1.5}


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_result(pipe, {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1}
    os.close(reader)
    assert pipe.is_fifo()


# --- eval routing ------------------------------------------------------------------------------

KEYS = {
    *("world", "policy", "n", "accuracy", "usd_per_1k", "router_usd_per_1k", "best_single"),
    *("oracle", "cost_save", "accuracy_delta", "by_task", "routing_share", "turns_mean", "seed"),
    *("commit", "provenance", "intervals"),
}


def test_the_result_holds_what_later_checks_rely_on(fleet):
    result = evaluate_routing("model:medium", world="recorded", recorded=fleet.directory)
    assert set(result) >= KEYS
    assert set(result["best_single"]) >= {"model", "accuracy", "usd_per_1k"}
    assert set(result["oracle"]) == {"accuracy", "usd_per_1k"}
    assert result["n"] == 80
    assert result["accuracy"] == fleet.correct[:, 2].mean()
    assert result["router_usd_per_1k"] == 0
    assert str(fleet.directory) not in json.dumps(result)


def test_the_best_single_model_measured_as_a_policy_saves_nothing(fleet):
    best = evaluate_routing("oracle", world="recorded", recorded=fleet.directory)["best_single"]
    result = evaluate_routing(f"model:{best['model']}", world="recorded", recorded=fleet.directory)
    assert result["accuracy_delta"] == result["cost_save"] == 0.0
    assert result["cost_save_at"] == {"at_100": 0.0, "at_98": 0.0, "at_95": 0.0}
    assert result["mcnemar"]["p_value"] == 1.0


def test_the_oracle_policy_reaches_the_oracle_numbers(fleet):
    result = evaluate_routing("oracle", world="recorded", recorded=fleet.directory)
    assert result["accuracy"] == result["oracle"]["accuracy"]
    assert result["usd_per_1k"] == pytest.approx(result["oracle"]["usd_per_1k"])


def test_fitted_baselines_are_measured_on_the_half_they_were_not_fitted_on(fleet):
    result = evaluate_routing("knn", world="recorded", recorded=fleet.directory)
    assert result["n"] == 40
    assert "held out" in result["evaluated_on"]
    assert "everything but test" in result["fitted_on"]


def test_fitting_on_another_recording_measures_on_the_whole(fleet, tmp_path):
    other = recording(tmp_path / "other", seed=1, prefix="p")
    result = evaluate_routing("knn", world="recorded", recorded=fleet.directory, fit=other)
    assert result["n"] == 80
    with pytest.raises(ValueError, match="80 queries of --recorded are also in --fit"):
        evaluate_routing("knn", world="recorded", recorded=fleet.directory, fit=fleet.directory)


def test_an_evaluation_only_recording_can_be_measured_but_not_fitted(tmp_path):
    write_recording(tmp_path / "r", *frames(), {"evaluation_only": True})
    assert evaluate_routing("random", world="recorded", recorded=tmp_path / "r")["n"] == 80
    with pytest.raises(ValueError, match="evaluation only"):
        evaluate_routing("knn", world="recorded", recorded=tmp_path / "r")
    other = recording(tmp_path / "o", prefix="p")
    with pytest.raises(ValueError, match="evaluation only"):
        evaluate_routing("knn", world="recorded", recorded=other, fit=tmp_path / "r")


def test_limit_takes_a_seeded_sample_of_that_size(fleet):
    options = {"world": "recorded", "recorded": fleet.directory, "limit": 10}
    first, again, other = (
        evaluate_routing("random", seed=s, **options)["by_task"] for s in (0, 0, 1)
    )
    assert first == again
    assert sum(part["n"] for part in first.values()) == 10
    assert first != other


def test_splits_of_a_recording_are_disjoint_and_complete(fleet):
    sizes = [
        evaluate_routing("random", world="recorded", recorded=fleet.directory, split=s)["n"]
        for s in ("train", "validation", "test")
    ]
    assert sizes == [32, 8, 40]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world": "moon"}, "world='moon'"),
        ({"world": "recorded"}, "--recorded DIR"),
        ({"policy": "nope"}, "neither a baseline"),
        ({"policy": "model:gpt-9"}, "'gpt-9' is not in the pool"),
        ({"split": "dev"}, "split='dev'"),
        ({"limit": 0}, "limit=0"),
        ({"pool": "tiny,gpt-9"}, "neither a named pool"),
    ],
)
def test_bad_requests_are_named(fleet, options, message):
    given = {"policy": "random", "world": "recorded"} | options
    if "recorded" not in message:
        given["recorded"] = fleet.directory
    with pytest.raises(ValueError, match=message):
        evaluate_routing(**given)


def test_the_command_writes_the_json_and_the_episode_files(fleet, tmp_path):
    args = ["eval", "routing", "--policy", "cheapest", "--world", "recorded", "--recorded"]
    args += [str(fleet.directory), "--json", str(tmp_path / "o.json"), "--out", str(tmp_path / "e")]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "cheapest" in done.output
    assert set(json.loads((tmp_path / "o.json").read_text())) >= KEYS
    assert len(pd.read_parquet(tmp_path / "e.parquet")) == 80
    assert len(read_episodes(tmp_path / "e.jsonl")) == 80


def test_the_simulated_world_is_measured_too():
    pytest.importorskip("xrouter.fleets.simulated")
    result = evaluate_routing("cheapest", world="simulated", limit=30)
    assert (result["world"], result["n"]) == ("simulated", 30)


# --- run folders -------------------------------------------------------------------------------


def run_folder(tmp_path: Path, fleet: RecordedFleet, **data) -> Run:
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"world": "recorded", "recorded": str(fleet.directory), "dial": {"values": [0.2, 0]}}
    config["data"] = {"seed": 3, "train": 0.5, "validation": 0.25, "test": 0.25} | data
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "summary.json").write_text(json.dumps({"data_hash": fleet.data_hash}))
    return Run(folder)


def test_a_run_knows_what_it_was_trained_on(fleet, tmp_path):
    run = run_folder(tmp_path, fleet)
    seen = run.seen(fleet)
    assert len(seen) == 40
    other = RecordedFleet(recording(tmp_path / "other", prefix="p"))
    assert run.seen(other) == frozenset()
    (run.folder / "splits.json").write_text(json.dumps({"train": ["gsm:q1", "elsewhere"]}))
    assert run.seen(fleet) == {"gsm:q1"}


def test_a_copy_of_the_training_data_is_recognised_by_its_queries(fleet, tmp_path):
    run = run_folder(tmp_path, fleet)
    queries, outcomes, prices = frames()
    subset = write(tmp_path / "part", queries, outcomes.assign(cost_usd=1.0), prices)
    assert run.seen(RecordedFleet(subset)) == run.seen(fleet)


def test_a_run_that_does_not_say_is_unknown(fleet, tmp_path):
    (tmp_path / "bare").mkdir()
    assert Run(tmp_path / "bare").seen(fleet) is None
    assert Run(tmp_path / "bare").dial == ()
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        Run(tmp_path / "nowhere")


def test_a_run_offers_the_dial_it_was_trained_on(fleet, tmp_path):
    assert run_folder(tmp_path, fleet).dial == (0.0, 0.2)


def test_importing_the_evaluation_loads_neither_torch_nor_sklearn():
    code = (
        "import sys, xrouter.evaluation.compare, xrouter.evaluation.routing\n"
        "print([m for m in ('torch', 'sklearn', 'litellm', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_policies_by_name_are_what_the_command_runs(fleet):
    table = recorded_table(fleet, fleet.tasks())
    best = table.models[table.best_single()]
    assert make_policy("best_single", table).model == best
