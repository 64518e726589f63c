"""The suite of the simulated world: every policy measured alike, operating points held out."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from xrouter.episode import Decision
from xrouter.evaluation import suite
from xrouter.evaluation.suite import evaluate_suite, find_router, open_stage, savings
from xrouter.policies.baselines import SingleModel

SIZES = {"train": 70, "validation": 28, "test": 42}
POOL = "gpt-5,gpt-5-mini,gpt-5-nano,gpt-oss-20b"
DIAL = (0.0, 0.3)
BASELINES = ("random", "cheapest", "agreement", "dataset_best", "fixed_chain", "oracle")
ROUTER_USD = 2e-5


class Dial:
    """Answers small talk itself, else one model that depends on λ; its tokens cost money."""

    name = "scripted"

    async def decide(self, state):
        if state.task.domain == "chat":
            return Decision(content="Hello!", cost_usd=ROUTER_USD)
        model = "gpt-5" if state.cost_weight == 0 else "gpt-5-nano"
        decision = await SingleModel(model).decide(state)
        return dataclasses.replace(decision, cost_usd=ROUTER_USD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("suite")


@pytest.fixture(scope="module")
def points(folder) -> pd.DataFrame:
    return evaluate_suite(
        Dial(), sizes=SIZES, pool=POOL, dial=DIAL, baselines=BASELINES, out=folder / "simulated"
    )


def row(points: pd.DataFrame, policy: str, weight: float | None = None) -> pd.Series:
    own = points[points["policy"] == policy]
    if weight is not None:
        own = own[own["cost_weight"] == weight]
    assert len(own) == 1
    return own.iloc[0]


# --- rows --------------------------------------------------------------------------------------


def test_there_is_one_row_per_policy_and_dial_position(points):
    rows = points.groupby("policy", sort=False).size().to_dict()
    singles = POOL.split(",")
    assert rows == {
        **dict.fromkeys(sorted(singles, key=lambda m: m != points["policy"][0]), 1),
        **{"random": 1, "cheapest": 1, "agreement": 1},
        **{"dataset_best": 2, "fixed_chain": 2, "oracle": 1, "router": 2},
    }
    assert set(points["world"]) == {"simulated"}
    assert set(points["n"]) == {SIZES["test"]}
    assert points["cost_weight"].isna().sum() == 8


def test_intervals_hold_their_estimate(points):
    for name in ("accuracy", "usd_per_1k", "accuracy_delta", "cost_save"):
        assert (points[f"{name}_low"] <= points[name] + 1e-12).all()
        assert (points[name] <= points[f"{name}_high"] + 1e-12).all()


def test_a_model_called_by_the_router_answers_as_it_does_alone(points):
    router, alone = row(points, "router", 0.3), row(points, "gpt-5-nano")
    assert router["accuracy"] == alone["accuracy"]
    assert router["router_usd_per_1k"] == pytest.approx(1e3 * ROUTER_USD)
    assert router["usd_per_1k"] < alone["usd_per_1k"] + router["router_usd_per_1k"]
    assert alone["router_usd_per_1k"] == 0


def test_direct_answers_are_counted_and_belong_to_small_talk(points):
    router = row(points, "router", 0.0)
    assert 0 < router["direct_rate"] < 0.2
    assert router["share/gpt-5"] == pytest.approx(1 - router["direct_rate"])
    assert router["share/gpt-5-nano"] == 0
    assert router["calls_mean"] == pytest.approx(1 - router["direct_rate"])
    assert router["accuracy/chat"] == 1


def test_the_best_single_model_is_its_own_reference(points):
    best = points.iloc[0]
    assert best["kind"] == "single model"
    assert best["accuracy_delta"] == best["cost_save"] == 0
    assert best[["met_100", "met_98", "met_95"]].all()
    half = points[points["kind"] == "single model"]
    saved = 1 - half["usd_per_1k"] / best["usd_per_1k"]
    assert np.allclose(half["cost_save"], saved)


def test_cost_is_measured_in_units_of_the_training_reference(points):
    stage = open_stage(sizes=SIZES, pool=POOL)
    ratio = points["usd_per_1k"] / points["cost_relative"]
    assert np.allclose(ratio, 1e3 * stage.reference_usd)
    assert stage.best_single == points["policy"][0]


def test_the_oracle_bounds_every_policy_but_is_not_on_the_frontier(points):
    oracle = row(points, "oracle")
    single = points[points["kind"] == "single model"]
    assert (oracle["accuracy"] >= single["accuracy"]).all()
    assert not oracle["pareto"]


def test_the_frontier_is_what_no_deployable_policy_beats(points):
    open_to_all = points[points["kind"] != "oracle"]
    for _, p in open_to_all.iterrows():
        no_dearer = open_to_all["usd_per_1k"] <= p["usd_per_1k"]
        no_worse = open_to_all["accuracy"] >= p["accuracy"]
        better = (open_to_all["usd_per_1k"] < p["usd_per_1k"]) | (
            open_to_all["accuracy"] > p["accuracy"]
        )
        if p["pareto"]:
            assert not (no_dearer & no_worse & better).any()
        else:
            assert (no_dearer & no_worse).sum() > 1


# --- operating points --------------------------------------------------------------------------


def test_each_policy_has_one_operating_point_per_target(points):
    chosen = points.groupby("policy")[["at_100", "at_98", "at_95"]].sum()
    assert (chosen == 1).all(axis=None)


def test_no_saving_is_claimed_where_accuracy_falls_short(points):
    table = savings(points)
    assert len(table) == 3 * points["policy"].nunique()
    assert table["cost_save"].isna().equals(~table["met"])
    assert (table.loc[~table["met"], "shortfall"] > 0).all()
    assert (table.loc[table["met"], "shortfall"] == 0).all()
    cheapest = table[(table["policy"] == "cheapest") & (table["target"] == "at_100")].iloc[0]
    assert not cheapest["met"]


def test_operating_points_are_chosen_on_validation(points, monkeypatch):
    seen = []

    def choose(curve, reference, fraction, *, margin):
        seen.append((curve.validation[0].shape, reference.validation[0].shape))
        return len(curve.dial) - 1

    monkeypatch.setattr(suite, "choose_at", choose)
    again = evaluate_suite(Dial(), sizes=SIZES, pool=POOL, dial=DIAL, baselines=())
    n = SIZES["validation"]
    assert set(seen) == {((1, n), (n,)), ((2, n), (n,))}
    assert row(again, "router", 0.3)["at_100"]


# --- settings ----------------------------------------------------------------------------------


def test_limit_takes_that_many_tasks_of_each_split_that_is_measured():
    stage = open_stage(sizes=SIZES, pool=POOL, limit=9)
    assert (len(stage.validation), len(stage.test)) == (9, 9)
    assert len(stage.fit.tasks) == SIZES["train"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"baselines": ["knn", "magic"]}, r"baselines=\['magic'\]"),
        ({"limit": 0}, "limit=0"),
        ({"pool": "no-such-pool"}, "pool='no-such-pool'"),
        ({"sizes": {"train": 20, "test": 10}}, "the suite also needs validation"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        evaluate_suite(None, **{"sizes": SIZES, "pool": POOL, "baselines": ()} | wrong)


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate_suite(tmp_path / "nowhere")


# --- files -------------------------------------------------------------------------------------


def test_points_routing_and_provenance_are_written(points, folder):
    pd.testing.assert_frame_equal(pd.read_csv(folder / "simulated.csv"), points)
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "simulated.parquet"), points)
    stamp = json.loads((folder / "simulated.provenance.json").read_text())
    assert stamp["world"] == "simulated"
    assert stamp["tasks"] == SIZES
    assert stamp["pool"] == POOL.split(",")
    assert str(folder.parent) not in (folder / "simulated.provenance.json").read_text()


def test_routing_shares_of_a_domain_add_up(points, folder):
    routing = pd.read_csv(folder / "simulated_routing.csv")
    assert set(routing["policy"]) == {"router"}
    sums = routing.groupby(["cost_weight", "domain"])["share"].sum()
    assert np.allclose(sums, 1)  # this router calls one model at most
    chat = routing[(routing["domain"] == "chat") & (routing["model"] == "none")]
    assert (chat["share"] == 1).all()
    by_domain = routing.drop_duplicates(["cost_weight", "domain"])
    assert by_domain.groupby("cost_weight")["n"].sum().tolist() == [SIZES["test"]] * 2


# --- a trained router --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with an untrained router: what it does is random, how it is measured is not."""
    from xrouter.policies.cards import cards_from_catalog
    from xrouter.policies.codec import Codec, train_tokenizer
    from xrouter.policies.local import build_model, save_policy
    from xrouter.world import open_simulated

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    catalog = open_simulated(sizes={"test": 7}).fleet.catalog
    tokenizer = train_tokenizer(["What is 1 + 1?"], vocab_size=480, names=catalog.models)
    codec = Codec(tokenizer, cards=cards_from_catalog(catalog), reference_usd=0.02, query_tokens=8)
    model = build_model(tokenizer.get_vocab_size(), hidden_size=16, layers=1, heads=2, kv_heads=1)
    save_policy(folder / "policy", model, codec)
    config = {
        "world": "simulated",
        "max_turns": 2,
        "data": {"seed": 0, "train": 30, "validation": 7, "test": 14},
        "pool": {"evaluate": POOL},
        "dial": {"values": [0.2, 0.0]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_run_brings_its_own_world_pool_and_dial_and_continues_from_its_journal(
    run, tmp_path, monkeypatch
):
    from xrouter.policies.local import LocalPolicy

    first = evaluate_suite(run, baselines=(), journal=tmp_path)
    assert row(first, "router", 0.2)["n"] == 14
    assert set(first["cost_weight"].dropna()) == {0.0, 0.2}
    assert (first[first["kind"] == "router"]["router_usd_per_1k"] > 0).all()
    assert first["turns_mean"].max() <= 2
    lines = [len(p.read_text().splitlines()) for p in sorted(tmp_path.rglob("*.jsonl"))]
    assert lines == [21, 21]

    async def decide(self, state):
        raise AssertionError("an episode was run again")

    monkeypatch.setattr(LocalPolicy, "decide", decide)
    pd.testing.assert_frame_equal(evaluate_suite(run, baselines=(), journal=tmp_path), first)


def test_episodes_of_other_weights_are_never_taken_from_the_journal(run, tmp_path):
    other = tmp_path / run.name
    other.mkdir()
    for path in [run / "config.yaml", *(run / "policy").iterdir()]:
        target = other / path.relative_to(run)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    journal = tmp_path / "journal"
    evaluate_suite(run, baselines=(), dial=(0.0,), journal=journal)
    weights = other / "policy" / "generation_config.json"
    weights.write_text(weights.read_text() + "\n")
    evaluate_suite(other, baselines=(), dial=(0.0,), journal=journal)
    assert len(list(journal.iterdir())) == 2


def test_the_router_is_the_run_if_complete_else_the_shipped_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results/runs/cpu .* nor checkpoints/router-cpu"):
        find_router("cpu", tmp_path)
    shipped = tmp_path / suite.SHIPPED
    shipped.mkdir(parents=True)
    (shipped / "router.json").touch()
    trained = tmp_path / "results" / "runs" / "cpu"
    trained.mkdir(parents=True)
    (trained / "config.yaml").touch()
    assert find_router("cpu", tmp_path) == shipped
    (trained / "summary.json").touch()
    assert find_router("cpu", tmp_path) == trained


def test_nothing_undefined_hides_in_the_numbers(points):
    numbers = points.drop(columns=["cost_weight"]).select_dtypes("number")
    assert not numbers.isna().any(axis=None)
    assert math.isfinite(numbers.to_numpy().sum())
