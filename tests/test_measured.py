"""Tables and plots of our own results: what they say is what the frames hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from xrouter.episode import Completion, Decision, Episode, Task, ToolCall, ToolResult, Turn
from xrouter.evaluation.suite import savings
from xrouter.outcomes import OutcomeTable
from xrouter.report import (
    data_plots,
    diagram,
    figures,
    measured,
    recorded,
    suite_plots,
    traces,
    training_plots,
)
from xrouter.reward import RewardConfig


@pytest.fixture(autouse=True)
def style():
    with figures.style():
        yield


def suite_frame() -> pd.DataFrame:
    """Two single models, a rule, a baseline with a dial, the oracle, and the router."""
    nan = float("nan")
    rows = [
        ("big", "single model", nan, 0.90, 20.0, True),
        ("small", "single model", nan, 0.60, 1.0, True),
        ("cheapest", "baseline", nan, 0.60, 1.0, False),
        ("knn", "baseline", 0.0, 0.88, 15.0, False),
        ("knn", "baseline", 0.3, 0.70, 4.0, False),
        ("oracle", "oracle", nan, 0.97, 2.0, False),
        ("router", "router", 0.0, 0.91, 12.0, True),
        ("router", "router", 0.3, 0.80, 3.0, True),
    ]
    columns = ["policy", "kind", "cost_weight", "accuracy", "usd_per_1k", "pareto"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.insert(0, "world", "simulated")
    frame["n"] = 100
    for name in ("accuracy", "usd_per_1k"):
        frame[f"{name}_low"], frame[f"{name}_high"] = 0.95 * frame[name], 1.05 * frame[name]
    frame["router_usd_per_1k"] = np.where(frame["kind"] == "router", 0.02, 0.0)
    frame["cost_relative"] = frame["usd_per_1k"] / 20
    frame["cost_utility"] = frame["accuracy"] / frame["usd_per_1k"]
    frame["turns_mean"] = frame["calls_mean"] = 1.0
    frame["cost_save"] = 1 - frame["usd_per_1k"] / 20
    frame["cost_save_low"], frame["cost_save_high"] = frame["cost_save"], frame["cost_save"]
    frame["accuracy_delta"] = frame["accuracy"] - 0.9
    for share in (100, 98, 95):
        frame[f"at_{share}"] = frame["cost_weight"].isna() | (frame["cost_weight"] == 0.0)
        frame[f"met_{share}"] = frame["accuracy"] >= share / 100 * 0.9
    frame["accuracy/math"] = frame["accuracy"]
    frame["accuracy/chat"] = 1.0
    return frame


# --- tables ------------------------------------------------------------------------------------


def test_the_suite_table_takes_one_row_per_policy_at_a_weight_cheapest_first():
    table = measured.suite_table(suite_frame(), weight=0.3)
    assert list(table["policy"]) == [
        *("small", "cheapest", "oracle", "trained router", "kNN", "big"),
    ]
    assert list(table["λ"]) == ["", "", "", "0.3", "0.3", ""]
    assert table["95 % interval"][0] == "57.0–63.0"
    assert list(table["frontier"]) == ["yes", "", "", "yes", "", "yes"]
    assert len(measured.suite_table(suite_frame())) == 8


def test_savings_are_shown_with_their_interval_or_as_what_is_missing():
    table = measured.savings_table(savings(suite_frame()))
    assert table.loc["trained router", "at parity"] == "40 % (40 to 40)"
    assert table.loc["kNN", "at parity"] == "short by 2.0 points"
    assert table.loc["kNN", "at 95 %"] == "25 % (25 to 25)"


def test_rewards_charge_cost_at_the_asked_exchange_rate():
    earned = measured.rewards(suite_frame(), [0.0, 0.3])
    assert earned.loc["big", 0.3] == pytest.approx(0.9 - 0.3)
    assert earned.loc["router", 0.0] == pytest.approx(0.91)
    assert earned.loc["router", 0.3] == pytest.approx(0.80 - 0.3 * 0.15)


def validation_frame(lift: float = 0.1) -> pd.DataFrame:
    rows = [
        (step, weight, 0.7 + lift * (step > 0), 0.02, 0.8, 5.0, 2.0, 3.0, 0.0)
        for step in (0, 10, 20)
        for weight in (0.02, 0.12)
    ]
    columns = ["step", "cost_weight", "reward", "reward_sem", "accuracy", "usd_per_1k"]
    return pd.DataFrame(rows, columns=[*columns, "turns", "calls", "direct_rate"])


def test_lift_is_the_last_validation_less_the_warm_start_with_an_interval():
    lift = measured.training_lift({"a": validation_frame(0.1), "b": validation_frame(0.01)})
    assert list(lift["run"]) == ["a", "a", "b", "b"]
    first = lift.iloc[0]
    assert (first["warm_start"], first["lift"]) == (0.7, pytest.approx(0.1))
    assert first["lift_low"] == pytest.approx(0.1 - 1.96 * 0.02 * 2**0.5)
    assert (lift["lift_low"] > 0).tolist() == [True, True, False, False]


def outcome_table() -> OutcomeTable:
    tasks = tuple(Task(f"t{i}", f"q{i}", difficulty=(i + 0.5) / 20) for i in range(20))
    quality = np.array([[1.0, float(i < 10)] for i in range(20)])
    cost = np.tile([0.02, 0.001], (20, 1))
    answers = np.array([["a", "a" if i < 10 else "b"] for i in range(20)], dtype=object)
    return OutcomeTable(tasks, ("big", "small"), quality, cost, answers)


def test_normalisation_decides_which_model_is_worth_most():
    settings = {
        "raw": (3.0, RewardConfig(normalization="raw")),
        "reference": (0.8, RewardConfig(reference_usd=0.02)),
    }
    effect = measured.normalization_effect(outcome_table(), settings)
    reward = effect.pivot(index="model", columns="setting", values="reward")
    assert reward.loc["big", "raw"] == pytest.approx(1 - 3 * 0.02)
    assert reward.loc["small", "reference"] == pytest.approx(0.5 - 0.8 * 0.05)
    assert reward["raw"].idxmax() == "big"
    assert reward["reference"].idxmax() == "small"


def test_curves_of_a_comparison_say_what_was_chosen_and_what_was_reached():
    def report(n: int) -> dict:
        curve = [
            {"cost_weight": w, "test": {"accuracy": 0.9 - w, "usd_per_1k": 9 - 9 * w}}
            for w in (0.0, 0.5)[:n]
        ]
        targets = ("at_100", "at_98", "at_95")
        saved = {"estimate": 0.1, "low": 0.05, "high": 0.15}
        attempt = {"position": 0, "accuracy_delta": -0.05, "cost_save": 0.1}
        attempt["intervals"] = {"cost_save": saved}
        return {
            "curve": curve,
            "attempted": dict.fromkeys(targets, attempt),
            "at_100": None,
            "at_98": {},
            "at_95": {},
        }

    result = {
        "world": "recorded",
        "n": {"test": 40},
        "router": report(2),
        "baselines": {"cheapest": report(1)},
        "oracle": {"accuracy": 1.0, "usd_per_1k": 0.5},
        "best_single": {"model": "big"},
    }
    frame = recorded.curves_frame(result, {"big": (0.95, 10.0), "small": (0.5, 0.1)})
    assert list(frame["policy"]) == ["big", "small", "router", "router", "cheapest", "oracle"]
    assert frame["cost_weight"].tolist()[2:4] == [0.0, 0.5]
    assert frame["cost_weight"].isna().tolist() == [True, True, False, False, True, True]
    assert frame["at_98"].tolist() == [True, False, True, False, True, False]
    assert frame["met_100"].tolist() == [True, False, False, False, False, False]
    assert frame["met_98"].equals(frame["at_98"])
    table = measured.savings_table(savings(frame))
    assert table.loc["trained router"].tolist() == ["short by 5.0 points", *["10 % (5 to 15)"] * 2]
    assert "small" not in table.index
    assert isinstance(suite_plots.suite_pareto(frame), Figure)


# --- plots -------------------------------------------------------------------------------------


def test_the_pareto_plot_labels_points_once_and_joins_the_router_over_its_dial():
    figure = suite_plots.suite_pareto(suite_frame(), note="Simulated world.")
    above, below = figure.axes
    texts = sorted(t.get_text() for t in above.texts if isinstance(t, Annotation))
    assert texts == ["big", "oracle", "small = cheapest", "λ=0", "λ=0.3"]
    lines = [line for line in above.lines if len(line.get_xdata()) == 2]
    assert any(list(line.get_xdata()) == [12.0, 3.0] for line in lines)
    assert [t.get_text() for t in below.get_legend().get_texts()] == ["kNN"]
    assert figure.get_supxlabel() == "Simulated world."


def test_without_baselines_that_have_a_dial_there_is_one_panel():
    frame = suite_frame()
    assert len(suite_plots.suite_pareto(frame[frame["policy"] != "knn"]).axes) == 1


def test_the_heat_map_shows_domains_by_models_and_leaves_out_who_is_never_called():
    routing = pd.DataFrame(
        [
            (weight, domain, model, share)
            for weight in (0.0, 0.3)
            for domain in ("chat", "math")
            for model, share in (("big", 0.4), ("small", 0.9), ("idle", 0.0), ("none", 0.1))
        ],
        columns=["cost_weight", "domain", "model", "share"],
    )
    figure = suite_plots.routing_heatmap(routing, order=["small", "big"])
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["no call", "small", "big"]
    assert [t.get_text() for t in figure.axes[0].texts] == ["10", "10", "90", "90", "40", "40"]
    with pytest.raises(ValueError, match=r"weights=\[0\.7\]"):
        suite_plots.routing_heatmap(routing, weights=[0.7])


def metrics_frame(steps: int = 8) -> pd.DataFrame:
    names = ["reward", "accuracy", "cost/mean_usd", "turns/mean", "routing/calls_mean", "entropy"]
    names += ["clip_ratio/low_mean", "clip_ratio/high_mean"]
    values = np.linspace(0.1, 0.9, steps)
    return pd.DataFrame({"step": np.arange(1, steps + 1), **dict.fromkeys(names, values)})


def test_the_training_panel_draws_each_run_thin_and_their_mean_thick():
    figure = training_plots.training_panel({"a": metrics_frame(), "b": metrics_frame(6)})
    assert len(figure.axes) == 6
    thin, _, mean = figure.axes[2].lines
    assert thin.get_ydata()[0] == pytest.approx(100.0)  # USD per request -> per 1,000
    assert mean.get_linewidth() > thin.get_linewidth()
    assert len(mean.get_xdata()) == 8


def test_training_plots_refuse_frames_they_cannot_draw():
    with pytest.raises(ValueError, match="runs is empty"):
        training_plots.training_panel({})
    with pytest.raises(ValueError, match=r"run 'a': metrics lack the columns \['entropy'\]"):
        training_plots.training_panel({"a": metrics_frame().drop(columns="entropy")})
    with pytest.raises(ValueError, match="runs is empty"):
        training_plots.validation_curves({})


def test_validation_curves_mark_the_warm_start_in_each_panel():
    figure = training_plots.validation_curves({"a": validation_frame(), "b": validation_frame()})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["λ=0.02", "λ=0.12"]
    for ax in figure.axes:
        assert [t.get_text() for t in ax.texts] == ["warm start"]
        (level,) = {line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"}
        assert level == pytest.approx(0.7)


def test_the_normalisation_plot_rings_the_best_model_of_each_setting():
    settings = {
        "raw": (3.0, RewardConfig(normalization="raw")),
        "reference": (0.8, RewardConfig(reference_usd=0.02)),
    }
    effect = measured.normalization_effect(outcome_table(), settings)
    left, right = suite_plots.reward_normalization(effect, noise=0.1).axes
    rings = [line.get_ydata()[0] for line in right.lines if line.get_markersize() > 10]
    models = [t.get_text() for t in left.get_yticklabels()]
    assert [models[int(y)] for y in rings] == ["big", "small"]


def test_difficulty_and_agreement_are_read_off_the_outcomes():
    figure, frame = data_plots.accuracy_by_difficulty(outcome_table(), ["big", "small"], bins=2)
    assert isinstance(figure, Figure)
    assert frame["accuracy"].tolist() == [1.0, 1.0, 1.0, 0.0]
    assert frame["n"].tolist() == [10] * 4
    (row,) = data_plots.agreement_table(outcome_table(), [("small", "big")]).to_dict("records")
    assert (row["agree"], row["first right"]) == (0.5, 0.5)
    assert (row["first right | agree"], row["first right | differ"]) == (1.0, 0.0)


def test_small_figures_are_drawn():
    tasks = pd.DataFrame({"split": ["train"] * 3, "domain": list("aab"), "band": ["easy"] * 3})
    assert data_plots.task_counts(tasks).axes[0].get_title(loc="left") == "train: 3"
    at = suite_frame().query("cost_weight != 0.3")
    assert len(data_plots.accuracy_by_domain(at, ["router", "big"]).axes) == 1
    assert len(suite_plots.cost_per_correct(suite_frame()).axes[0].patches) == 6
    assert diagram.system_diagram().axes


# --- traces ------------------------------------------------------------------------------------


def test_a_trace_says_what_was_written_what_came_back_and_who_agrees():
    a, b = ToolCall("call_a", {}, "1"), ToolCall("call_b", {}, "2")
    done = [Completion("a", "it is 4", "4", cost_usd=0.001), Completion("b", "4!", "4")]
    first = Turn(0, Decision("Asking.", (a, b)), (ToolResult(a, done[0]), ToolResult(b, done[1])))
    pick = ToolCall("select_response", {"model_call_name": "call_a"}, "3")
    last = Turn(1, Decision(tool_calls=(pick,), cost_usd=0.0005), (ToolResult(pick),))
    episode = Episode(
        "t", "p", "simulated", "agent", ("a", "b"), (first, last), "it is 4", "select", "a",
        "selected", quality=1.0,
    )  # fmt: skip
    table = traces.trace_table(episode)
    assert table["answer"].tolist() == ["4", "4", "accepted"]
    assert table["agrees with"].tolist() == ["b", "a", ""]
    assert table["$ per 1k"].tolist() == [1.0, 0.0, 0.0]
    assert traces.spoken(first).startswith('Asking.\n<tool_call>{"name": "call_a"')
    line = traces.outcome_line(episode)
    assert line.startswith("selected (select); asked a + b; quality 1; $1.500 per 1,000")
