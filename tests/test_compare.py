import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from support_recordings import frames, recording
from typer.testing import CliRunner

from xrouter.cli import app
from xrouter.evaluation.compare import (
    BASELINES,
    Curve,
    Position,
    Reference,
    choose_at,
    choose_at_cost,
    compare,
    sweep,
)
from xrouter.evaluation.console import show_comparison, write_result
from xrouter.fleets.recorded import RecordedFleet, write_recording
from xrouter.outcomes import collect_outcomes
from xrouter.policies.baselines import DatasetBest, Oracle, SingleModel, make_policy

TARGETS = ("at_100", "at_98", "at_95", "at_equal_cost")
FAST = ("cheapest", "dataset_best", "fixed_chain")


@pytest.fixture(scope="module")
def halves(tmp_path_factory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("halves")
    return recording(base / "train", n=30, seed=1, prefix="a"), recording(
        base / "test", n=30, seed=2, prefix="b"
    )


class Dial:
    """A router whose dial works: the specialist of each source, or the cheapest model."""

    name = "router"

    async def decide(self, state):
        model = "tiny" if state.cost_weight > 0.15 else "medium"
        return await SingleModel(model).decide(state)


@pytest.fixture(scope="module")
def result(halves) -> dict:
    return compare(Dial(), *halves)


# --- the report --------------------------------------------------------------------------------


def test_the_report_has_the_agreed_shape(result):
    assert set(result["baselines"]) == set(BASELINES)
    for report in (result["router"], *result["baselines"].values()):
        for target in TARGETS:
            point = report[target]
            assert point is None or {
                "accuracy",
                "usd_per_1k",
                "cost_save",
                "accuracy_delta",
            } <= set(point)
        assert report["curve"]
        assert report["frontier_gap"] >= 0
    assert {"model", "accuracy", "usd_per_1k"} <= set(result["best_single"])
    assert set(result["oracle"]) == {"accuracy", "usd_per_1k"}
    assert result["n"] == {"fit": 42, "validation": 18, "test": 60}


def test_the_report_is_json_and_names_no_folder_of_this_machine(result, halves, tmp_path):
    write_result(tmp_path / "r.json", result)
    assert json.loads((tmp_path / "r.json").read_text())["router"]["curve"]
    assert str(halves[0].parent) not in (tmp_path / "r.json").read_text()


def test_points_that_fall_short_on_test_are_null_and_the_others_are_met(result):
    best = result["best_single"]
    for report in (result["router"], *result["baselines"].values()):
        for target, share in (("at_100", 1.0), ("at_98", 0.98), ("at_95", 0.95)):
            attempt = report["attempted"][target]
            met = attempt["accuracy"] >= share * best["accuracy"] - 1e-9
            assert report[target] == (attempt if met else None)
        equal = report["at_equal_cost"]
        assert equal is None or equal["usd_per_1k"] <= best["usd_per_1k"] + 1e-9


def test_hindsight_is_at_least_as_good_as_any_choice_that_met_its_target(result):
    for report in (result["router"], *result["baselines"].values()):
        for target in ("at_100", "at_98", "at_95"):
            if report[target]:
                assert report["hindsight"][target] >= report[target]["cost_save"] - 1e-12
            elif report["hindsight"][target] is not None:
                assert len(report["curve"]) > 1


def test_points_are_taken_from_the_test_curve(result):
    for report in (result["router"], *result["baselines"].values()):
        for target in TARGETS:
            if attempt := report["attempted"][target]:
                shown = report["curve"][attempt["position"]]["test"]
                assert (attempt["accuracy"], attempt["usd_per_1k"]) == (
                    shown["accuracy"],
                    shown["usd_per_1k"],
                )


def test_the_reference_is_chosen_on_train_and_reported_on_test(result, halves):
    train, test = (RecordedFleet(h) for h in halves)
    best = train.correct.mean(axis=0).argmax()
    assert result["best_single"]["model"] == train.model_ids[best]
    assert result["best_single"]["accuracy"] == pytest.approx(test.correct[:, best].mean())


def test_the_router_curve_is_the_policy_at_each_dial_value(result, halves):
    test = RecordedFleet(halves[1])
    for point in result["router"]["curve"]:
        model = "tiny" if point["cost_weight"] > 0.15 else "medium"
        expected = test.correct[:, test.model_ids.index(model)].mean()
        assert point["test"]["accuracy"] == pytest.approx(expected)


def test_holm_adjustment_never_lowers_a_p_value(result):
    for report in (result["router"], *result["baselines"].values()):
        for target in TARGETS:
            if attempt := report["attempted"][target]:
                assert attempt["mcnemar"]["p_holm"] >= attempt["mcnemar"]["p_value"]


def test_the_router_is_compared_with_the_fixed_chain_pair_by_pair(result):
    versus = result["router"]["versus_fixed_chain"]["at_95"]
    mine, theirs = (
        r["attempted"]["at_95"] for r in (result["router"], result["baselines"]["fixed_chain"])
    )
    assert versus["accuracy_delta"]["estimate"] == pytest.approx(
        mine["accuracy"] - theirs["accuracy"]
    )
    assert versus["cost_save"]["estimate"] == pytest.approx(
        1 - mine["usd_per_1k"] / theirs["usd_per_1k"]
    )


def test_the_comparison_repeats_itself(halves):
    first, second = (compare(Dial(), *halves, baselines=FAST) for _ in range(2))
    for one in (first, second):
        del one["provenance"], one["commit"]
    assert first == second


def test_it_prints(result, capsys):
    show_comparison(result)
    assert "fixed_chain" in capsys.readouterr().out


# --- honesty -----------------------------------------------------------------------------------


def test_test_outcomes_do_not_influence_any_choice(halves, tmp_path):
    queries, outcomes, prices = frames(30, seed=2, prefix="b")
    flipped = outcomes.assign(correct=1 - outcomes["correct"])
    write_recording(tmp_path / "flipped", queries, flipped, prices)
    honest, lied = (
        compare(Dial(), halves[0], t, baselines=FAST) for t in (halves[1], tmp_path / "flipped")
    )
    assert honest["best_single"]["model"] == lied["best_single"]["model"]
    for name in ("router", *FAST):
        a, b = (r["router"] if name == "router" else r["baselines"][name] for r in (honest, lied))
        for target in TARGETS:
            one, two = a["attempted"][target], b["attempted"][target]
            assert (one and one["position"]) == (two and two["position"])


def test_overlapping_recordings_are_refused(halves):
    with pytest.raises(ValueError, match="60 queries are in both --train and --test"):
        compare(Dial(), halves[0], halves[0])


def test_an_evaluation_only_recording_may_test_but_not_train(halves, tmp_path):
    write_recording(tmp_path / "arena", *frames(20, 3, "c"), {"evaluation_only": True})
    with pytest.raises(ValueError, match="evaluation only"):
        compare(Dial(), tmp_path / "arena", halves[1], baselines=FAST)
    assert compare(Dial(), halves[0], tmp_path / "arena", baselines=FAST)["n"]["test"] == 40


def test_models_restrict_the_pool_for_everyone(halves):
    result = compare(SingleModel("small"), *halves, baselines=FAST, models=["tiny", "small"])
    assert result["pool"] == ["tiny", "small"]
    assert result["best_single"]["model"] in ("tiny", "small")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 1.0}, "validation=1.0"),
        ({"baselines": ["nope"]}, r"baselines=\['nope'\]"),
        ({"models": ["gpt-9"]}, "no model in common"),
    ],
)
def test_bad_requests_are_named(halves, options, message):
    with pytest.raises(ValueError, match=message):
        compare(Dial(), *halves, **options)


def test_a_missing_run_folder_is_an_error(halves, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run folder"):
        compare(tmp_path / "nowhere", *halves)
    args = ["eval", "compare", "--router", str(tmp_path / "nowhere")]
    done = CliRunner().invoke(app, [*args, "--train", str(halves[0]), "--test", str(halves[1])])
    assert isinstance(done.exception, FileNotFoundError)


# --- operating points --------------------------------------------------------------------------


def curve(quality: list[float], cost: list[float], n: int = 100) -> Curve:
    """Each position answers the first ``quality`` share of n tasks correctly."""
    marks = np.array([[float(i < round(q * n)) for i in range(n)] for q in quality])
    costs = np.repeat(np.array(cost)[:, None], n, axis=1)
    positions = tuple(Position(Dial(), 0.0, {}) for _ in quality)
    return Curve(positions, (marks, costs), (marks, costs))


def reference(quality: float = 0.8, cost: float = 1.0, n: int = 100) -> Reference:
    marks = np.array([float(i < round(quality * n)) for i in range(n)])
    return Reference("best", (marks, np.full(n, cost)), (marks, np.full(n, cost)))


def test_the_cheapest_position_that_reaches_the_target_is_chosen():
    dial = curve([0.9, 0.8, 0.79, 0.7], [1.0, 0.5, 0.3, 0.1])
    assert choose_at(dial, reference(), 1.0) == 1
    assert choose_at(dial, reference(), 0.98) == 2
    assert choose_at(dial, reference(), 0.8) == 3


def test_where_nothing_reaches_the_target_the_closest_is_tried():
    assert choose_at(curve([0.5, 0.7, 0.6], [0.1, 0.3, 0.2]), reference(), 1.0) == 1


def test_a_lucky_cheap_position_is_not_trusted():
    dial = curve([0.9, 0.75, 0.82, 0.60], [1.0, 0.6, 0.5, 0.1])
    assert choose_at(dial, reference(), 1.0) == 0


def test_a_margin_asks_for_more():
    dial = curve([0.95, 0.81], [1.0, 0.1])
    assert choose_at(dial, reference(), 1.0) == 1
    assert choose_at(dial, reference(), 1.0, margin=2.0) == 0


def test_at_equal_cost_the_most_accurate_affordable_position_is_chosen():
    dial = curve([0.95, 0.9, 0.9, 0.7], [2.0, 0.9, 0.8, 0.1])
    assert choose_at_cost(dial, reference()) == 2
    assert choose_at_cost(curve([0.9], [3.0]), reference()) is None


def test_a_sweep_gives_one_frame_per_position(halves):
    fleet = RecordedFleet(halves[0])
    table = asyncio.run(collect_outcomes(fleet, fleet.tasks()))
    policy = DatasetBest(table, table.reference_usd())
    positions = [Position(policy, w, {"cost_weight": w}) for w in (0.0, 5.0)]
    frames_ = sweep(positions, fleet, fleet.tasks())
    assert [f["cost_weight"].iloc[0] for f in frames_] == [0.0, 5.0]
    assert frames_[0]["cost_usd"].sum() > frames_[1]["cost_usd"].sum()


def test_a_perfect_router_beats_the_chain_and_reaches_the_oracle(halves):
    fleet = RecordedFleet(halves[1])
    both = [RecordedFleet(h) for h in halves]
    tables = [asyncio.run(collect_outcomes(f, f.tasks())) for f in both]
    oracles = {t.id: Oracle(table) for table in tables for t in table.tasks}

    class Perfect:
        name = "perfect"

        async def decide(self, state):
            return await oracles[state.task.id].decide(state)

    result = compare(Perfect(), *halves, baselines=["fixed_chain"], dial=[0.0])
    assert result["router"]["at_100"]["accuracy"] == pytest.approx(fleet.correct.any(1).mean())
    assert result["router"]["at_100"]["accuracy"] == pytest.approx(result["oracle"]["accuracy"])
    assert result["router"]["frontier_gap"] == 0.0
    assert result["router"]["perf_gain"] > 0
    assert make_policy("oracle", tables[1]).name == "oracle"
