"""The simulated world: plausible, correlated, repeatable, and honest about free text."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from itertools import combinations
from random import Random

import numpy as np
import pytest

from xrouter.catalog import Catalog, ModelSpec
from xrouter.data.offline import build_tasks
from xrouter.episode import Completion, Task
from xrouter.fleets.distractors import plausible_errors
from xrouter.fleets.simulated import SimulatedFleet, calibrate, expected_output_tokens, guess_domain
from xrouter.orchestrator import FleetRequest
from xrouter.verifiers import score

CATALOG = Catalog.load()
CHEAP = ("gpt-4o-mini", "gpt-oss-20b", "gpt-4.1-nano", "gemini-2.5-flash-lite")
Table = dict[tuple[str, str], tuple[Completion, bool]]


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return build_tasks(0, {"test": 600})["test"]


@pytest.fixture(scope="module")
def judged(tasks: list[Task]) -> list[Task]:
    return [t for t in tasks if t.verifier != "chat"]


@pytest.fixture(scope="module")
def table(tasks: list[Task]) -> Table:
    """Every model's first answer to every task, and whether it is right."""
    fleet = SimulatedFleet(CATALOG)
    answers: Table = {}
    for task in tasks:
        for spec in CATALOG:
            done = fleet.sample(FleetRequest(task, spec.id))
            answers[task.id, spec.id] = done, score(task, done.text) == 1.0
    return answers


def accuracy(table: Table, tasks: list[Task], model: str) -> float:
    return float(np.mean([table[t.id, model][1] for t in tasks]))


# --- skills


def test_skill_follows_published_scores_per_domain() -> None:
    skills = calibrate(CATALOG)
    assert skills.skill("gpt-5", "math") > skills.skill("gpt-4.1", "math")
    assert skills.skill("gpt-4.1", "stem") > skills.skill("gpt-4.1-nano", "stem")
    coder, chat = "qwen3-coder-480b", "qwen3-235b-thinking"
    gap = {d: skills.skill(coder, d) - skills.skill(chat, d) for d in ("code", "math")}
    assert gap["code"] > gap["math"]


def test_a_model_without_scores_gets_the_skill_of_its_price() -> None:
    skills = calibrate(CATALOG)
    assert not CATALOG["deepseek-r1-tput"].scores
    assert min(skills.general.values()) < skills.general["deepseek-r1-tput"]
    assert skills.general["deepseek-r1-tput"] < max(skills.general.values())
    assert set(skills.offsets["deepseek-r1-tput"].values()) == {0.0}


def test_a_catalog_without_any_scores_ranks_by_price() -> None:
    bare = Catalog(ModelSpec(m, p, p, ("budget",)) for m, p in (("a", 0.1), ("b", 1.0), ("c", 9.0)))
    skills = calibrate(bare)
    assert skills.general["a"] < skills.general["b"] < skills.general["c"]


def test_probability_falls_with_difficulty_and_chat_is_always_right() -> None:
    skills = calibrate(CATALOG)
    for model in CATALOG.models:
        chances = [skills.probability(model, "logic", d) for d in (0.0, 0.5, 1.0)]
        assert chances == sorted(chances, reverse=True)
        assert skills.probability(model, "chat", 0.9) == 1.0


def test_bad_skill_queries_name_the_value() -> None:
    skills = calibrate(CATALOG)
    with pytest.raises(ValueError, match="difficulty=2"):
        skills.probability("gpt-5", "math", 2)
    with pytest.raises(ValueError, match="model='nobody'"):
        skills.probability("nobody", "math", 0.5)


# --- outcomes


def test_verifiers_confirm_text_and_answer_alike(judged: list[Task], table: Table) -> None:
    for task in judged[:150]:
        for model in CATALOG.models:
            done, right = table[task.id, model]
            assert done.answer is not None
            assert (score(task, done.answer) == 1.0) == right


def test_each_task_has_right_and_wrong_replies_that_differ(judged: list[Task]) -> None:
    fleet = SimulatedFleet(CATALOG, seed=1)
    for task in judged:
        (text, answer), *wrong = fleet._task_world(task).replies
        assert score(task, text) == 1.0
        assert wrong
        assert all(score(task, w) < 1.0 for w, _ in wrong)
        assert len({answer, *(a for _, a in wrong)}) == 1 + len(wrong)


def test_drawn_accuracy_matches_the_skill_model(judged: list[Task], table: Table) -> None:
    skills = calibrate(CATALOG)
    for model in ("gpt-5", "gpt-oss-20b", "o4-mini"):
        chance = np.mean([skills.probability(model, t.domain, t.difficulty or 0) for t in judged])
        assert accuracy(table, judged, model) == pytest.approx(chance, abs=0.05)


def test_cheap_models_do_easy_tasks_and_strong_ones_are_needed_for_hard(
    judged: list[Task], table: Table
) -> None:
    easy = [t for t in judged if t.band == "easy"]
    hard = [t for t in judged if t.band == "hard"]
    for model in CHEAP:
        assert accuracy(table, easy, model) > 0.75
        assert accuracy(table, hard, model) < 0.35
    for model in ("gpt-5", "gemini-2.5-pro"):
        assert accuracy(table, easy, model) > 0.93
        assert 0.6 < accuracy(table, hard, model) < 0.9


def test_overall_accuracies_leave_room_for_routing(tasks: list[Task], table: Table) -> None:
    overall = {m: accuracy(table, tasks, m) for m in CATALOG.models}
    assert 0.8 < max(overall.values()) < 0.92
    assert all(0.5 < overall[m] < 0.65 for m in CHEAP)
    oracle = np.mean([any(table[t.id, m][1] for m in CATALOG.models) for t in tasks])
    assert oracle > max(overall.values()) + 0.05


def test_agreement_is_informative_but_no_proof(judged: list[Task], table: Table) -> None:
    agree, differ = [], []
    for a, b in combinations(CATALOG.models, 2):
        for task in judged:
            (first, right), (second, other) = table[task.id, a], table[task.id, b]
            if first.answer == second.answer:
                agree.append(right)
            else:
                differ.append((right + other) / 2)
    assert np.mean(agree) > 0.85 > 0.6 > np.mean(differ)
    assert np.mean(agree) < 0.97


def test_errors_of_two_models_are_correlated(judged: list[Task], table: Table) -> None:
    hard = [t for t in judged if t.band == "medium"]
    for a, b in combinations(CHEAP, 2):
        pairs = np.array([[table[t.id, a][1], table[t.id, b][1]] for t in hard], dtype=float)
        assert 0.1 < np.corrcoef(pairs.T)[0, 1] < 0.8


def test_a_second_attempt_of_the_same_model_resembles_the_first(judged: list[Task]) -> None:
    fleet = SimulatedFleet(CATALOG)
    same = other = 0
    for task in judged:
        first, second = (
            fleet.sample(FleetRequest(task, "gpt-4o-mini", attempt=n)).answer for n in (0, 1)
        )
        same += first == second
        other += first == fleet.sample(FleetRequest(task, "gpt-4.1-nano")).answer
    assert other < same < len(judged)


# --- determinism


def test_outcomes_do_not_depend_on_the_order_of_calls(judged: list[Task]) -> None:
    requests = [FleetRequest(t, m, attempt=n) for t in judged[:20] for m in CHEAP for n in (0, 1)]
    forward = {id(r): c for r, c in _sample_all(requests)}
    shuffled = list(requests)
    Random(0).shuffle(shuffled)
    assert forward == {id(r): c for r, c in _sample_all(shuffled)}


def _sample_all(requests: list[FleetRequest]) -> list[tuple[FleetRequest, Completion]]:
    fleet = SimulatedFleet(CATALOG, seed=3)
    return [(r, fleet.sample(r)) for r in requests]


def test_the_episode_seed_changes_nothing_and_the_world_seed_everything(judged: list[Task]) -> None:
    def texts(world: int, episode: int) -> list[str]:
        fleet = SimulatedFleet(CATALOG, seed=world)
        return [
            fleet.sample(FleetRequest(t, "gpt-4o-mini", seed=episode)).text for t in judged[:60]
        ]

    assert texts(0, 0) == texts(0, 9)
    assert texts(0, 0) != texts(1, 0)


def test_outcomes_are_the_same_in_another_process() -> None:
    code = (
        "from xrouter.catalog import Catalog; from xrouter.episode import Task;"
        "from xrouter.orchestrator import FleetRequest;"
        "from xrouter.fleets.simulated import SimulatedFleet;"
        "f = SimulatedFleet(Catalog.load(), seed=5);"
        "t = Task('t', 'What is 6*7?', gold='42', verifier='number', difficulty=0.9);"
        "print([(c.text, c.output_tokens, c.cost_usd) for c in "
        "(f.sample(FleetRequest(t, m)) for m in f.catalog.models)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


# --- bills, failures, speed


def test_cost_is_the_catalog_s_price_of_the_tokens(judged: list[Task], table: Table) -> None:
    for task in judged[:50]:
        for spec in CATALOG:
            done = table[task.id, spec.id][0]
            assert done.cost_usd == spec.cost(done.input_tokens, done.output_tokens) > 0
            assert done.latency_s > 0.4
            assert abs(done.input_tokens - len(task.query) / 4) < 20


def test_mean_output_tokens_follow_the_typical_length(judged: list[Task], table: Table) -> None:
    for spec in CATALOG:
        drawn = np.mean([table[t.id, spec.id][0].output_tokens for t in judged])
        assert drawn == pytest.approx(spec.typical_output_tokens, rel=0.15)


def test_hard_tasks_make_thinking_models_write_more() -> None:
    gpt5 = CATALOG["gpt-5"]
    easy, hard = (expected_output_tokens(gpt5, "math", d) for d in (0.0, 1.0))
    assert hard > 2 * easy


def test_a_failing_call_is_an_error_that_costs_nothing(judged: list[Task]) -> None:
    fleet = SimulatedFleet(CATALOG, failure_rate=0.3)
    done = [fleet.sample(FleetRequest(t, "gpt-5")) for t in judged]
    failed = [c for c in done if not c.ok]
    assert len(failed) / len(done) == pytest.approx(0.3, abs=0.08)
    assert all(c.finish_reason == "error" and c.cost_usd == 0 and not c.text for c in failed)
    with pytest.raises(ValueError, match=r"failure_rate=1\.5"):
        SimulatedFleet(CATALOG, failure_rate=1.5)


def test_ten_thousand_completions_take_less_than_two_cpu_seconds(judged: list[Task]) -> None:
    fleet = SimulatedFleet(CATALOG)
    requests = [FleetRequest(t, m) for t in judged[:200] for m in CATALOG.models]
    for request in requests:
        fleet.sample(request)
    started = time.process_time()
    for _ in range(3):
        for request in requests:
            fleet.sample(request)
    assert (time.process_time() - started) / (3 * len(requests)) < 2e-4


# --- chat and free text


def test_every_model_replies_properly_to_small_talk(tasks: list[Task], table: Table) -> None:
    chats = [t for t in tasks if t.verifier == "chat"]
    assert chats
    for task in chats:
        for model in CATALOG.models:
            done, right = table[task.id, model]
            assert right
            assert done.answer is None
            assert done.output_tokens < 1000


@pytest.mark.parametrize(
    "query",
    ["Explain photosynthesis.", "Hello there!", "def f(x): fix this bug", "", "Ünïcode? 你好"],
)
def test_free_text_gets_a_reply_that_says_it_is_simulated(query: str) -> None:
    fleet = SimulatedFleet(CATALOG)
    done = asyncio.run(fleet.complete(FleetRequest(Task("serve-1", query), "gpt-5")))
    assert done.ok
    assert done.text.startswith("[simulated reply of GPT-5]")
    assert done.answer is None
    assert done.cost_usd > 0


@pytest.mark.parametrize(
    ("query", "domain"),
    [
        ("| a | b |\n|---|---|\n| 1 | 2 |\nWhat is b?", "table"),
        ("Write a python function that sorts", "code"),
        ("What is 3 + 4?", "math"),
        ("Thanks!", "chat"),
        ("Why is the sky blue?", "stem"),
    ],
)
def test_the_domain_of_free_text_is_guessed(query: str, domain: str) -> None:
    assert guess_domain(query) == domain


def test_history_and_system_prompt_are_billed_as_input() -> None:
    fleet = SimulatedFleet(CATALOG)
    bare = Task("t", "What is 2+2?", gold="4", verifier="number")
    long = Task(
        "t",
        "What is 2+2?",
        gold="4",
        verifier="number",
        system="Be brief. " * 40,
        history=({"role": "user", "content": "x" * 400},),
    )
    first = fleet.sample(FleetRequest(bare, "gpt-5"))
    second = fleet.sample(FleetRequest(long, "gpt-5", system_prompt="y" * 400))
    assert second.input_tokens - first.input_tokens == 300
    assert second.text == first.text


def test_a_gold_answer_that_its_verifier_refuses_is_an_error() -> None:
    odd = Task("t", "q", gold="3", verifier="recorded", metadata={"correct_answers": ["3"]})
    with pytest.raises(ValueError, match="verifier 'recorded' refuses"):
        SimulatedFleet(CATALOG).sample(FleetRequest(odd, "gpt-5"))


@pytest.mark.parametrize(
    ("gold", "query"),
    [
        ("42", "q"),
        ("-7.25", "q"),
        ("3/4", "q"),
        ("0x1f", "q"),
        ("[1, 2, 3]", "q"),
        ("[[0,1],[1,0]]", "q"),
        ("ainomma", "q"),
        ("Tuesday", "q"),
        ("Ann", "Bob likes tea. Ann likes jam. Cid naps."),
    ],
)
def test_distractors_are_wrong_and_of_the_same_kind(gold: str, query: str) -> None:
    task = Task("t", query, gold=gold, verifier="exact")
    errors = [e for e, _ in zip(plausible_errors(task, gold, Random(0)), range(6), strict=False)]
    assert len(set(errors)) >= 2
    assert sum(score(task, e) < 1 for e in errors) >= 2


def test_yes_and_no_have_one_distractor() -> None:
    task = Task("t", "q", gold="Yes", verifier="exact")
    assert list(plausible_errors(task, "Yes", Random(0))) == ["No"]
