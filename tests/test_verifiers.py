"""The scorers: what counts as the same answer, and what must not."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrouter.episode import Task
from xrouter.verifiers import (
    EVALUATING_DATASETS,
    VERIFIERS,
    choice_letter,
    final_answer,
    normalize,
    parse_number,
    score,
)


def task(verifier: str, gold: str = "", **metadata: object) -> Task:
    return Task("t", "q", gold=gold, verifier=verifier, metadata=metadata)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # boxed
        (r"We get \boxed{\frac{1}{2}}.", "1/2"),
        (r"first \boxed{3}, then \boxed{\sqrt{2}}", "sqrt(2)"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"The final answer is $\boxed{12}$. I hope it is correct.", "12"),
        (r"\boxed{}", None),
        # marked
        ("Answer: 42", "42"),
        ("**Answer:** 7", "7"),
        ("**Answer: 7**", "7"),
        ("The answer is $3.0$.", "3"),
        ("The answer is 42, because 6*7=42.", "42"),
        ("The answer is 42. This follows from the above.", "42"),
        ("The answer to the question is 12.", "12"),
        ("Answer: 1. No, wait. Answer: 2", "2"),
        ("#### 1,000", "1000"),
        ("## Final Answer\n\n42", "42"),
        ("the answer is\n\n\\[\n42\n\\]", "42"),
        ('{"reasoning": "so", "answer": "B"}', "B"),
        # units, money, percent
        ("Answer: 1,234.50 dollars", "1234.5"),
        ("Answer: $1,000", "1000"),
        ("50%", "50"),
        (r"90^\circ", "90"),
        ("**Answer**: 7 km/h", "7"),
        # choices
        ("answer is (C).", "C"),
        ("(B) Paris", "B"),
        ("So I'd pick option b", "B"),
        # words
        ("yes", "Yes"),
        ("Answer: TRUE.", "True"),
        ("Answer: Ada is a hero, and Bob is a villain.", "Ada is a hero, and Bob is a villain"),
        # lists, grids, times, codes
        ("Answer: [[0,1],\n [1,0]]", "[[0, 1], [1, 0]]"),
        ("Answer:\n1 2 3\n4 5 6", "1 2 3\n4 5 6"),
        ("Answer:\n```\n1 2\n3 4\n```", "1 2\n3 4"),
        ("1 2\n3 4", "1 2\n3 4"),
        ("Answer: (3, 4)", "(3, 4)"),
        ("Answer: 03:22:03", "03:22:03"),
        ("0x5b993", "0x5b993"),
        ("007", "007"),
        # prose
        ("There are 3 cats and 4 dogs, so 7 animals.", "7"),
        ("Therefore, x = 7.", "7"),
        ("2 + 3 = 5", "5"),
        ("−5", "-5"),
        ("", None),
        (" \n", None),
        (
            "I think it works because nothing else does and this sentence goes on and on.",
            None,
        ),
    ],
)
def test_final_answer_finds_the_answer_in_tricky_text(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@given(st.text(max_size=80))
def test_final_answer_of_any_text_is_none_or_not_blank(text: str) -> None:
    answer = final_answer(text)
    assert answer is None or answer == answer.strip() != ""


@given(st.text(alphabet="ab 01,.$\\{}[]()%*'\"=-", max_size=40))
def test_normalizing_twice_changes_nothing(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


@given(
    st.integers(-(10**9), 10**9),
    st.sampled_from(["{}", "Answer: {}", r"\boxed{{{}}}", "So the answer is {}.", "#### {}"]),
)
def test_an_integer_is_found_in_every_wrapping_with_or_without_commas(n: int, wrap: str) -> None:
    assert final_answer(wrap.format(n)) == final_answer(wrap.format(f"{n:,}")) == str(n)
    assert score(task("number", str(n)), wrap.format(f"{n:,}")) == 1.0
    assert score(task("number", str(n + 1)), wrap.format(n)) == 0.0


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=4), min_size=2, max_size=4))
def test_a_grid_survives_being_marked_as_the_answer(rows: list[list[int]]) -> None:
    grid = "\n".join(" ".join(map(str, row)) for row in rows)
    assert final_answer(f"Done.\nAnswer:\n{grid}") == grid
    assert score(task("exact", grid), f"Done.\nAnswer:\n{grid}\n\nAnything else?") == 1.0


def test_unknown_verifier_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="verifier='vibes' is unknown"):
        score(task("vibes", "1"), "1")


def test_exact_ignores_case_and_markup_but_not_content() -> None:
    assert score(task("exact", "Paris"), "The answer is **paris**.") == 1.0
    assert score(task("exact", "Paris"), "Paris or Rome") == 0.0
    assert score(task("exact", "5 km"), "5 miles") == 0.0
    assert score(task("exact", ""), "") == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 1/2", 1.5),
        ("2 and 1/2", 2.5),
        ("-3/4", -0.75),
        (r"$\frac{3}{4}$ of the cake", 0.75),
        ("1.2 × 10^3", 1200),
        (r"1.5\times 10^{-3} mol", 0.0015),
        ("1.2e3", 1200),
        ("-$5", -5),
        ("−5 °C", -5),
        ("6*7 = 42", 42),
        ("42 (since 6*7=42)", 42),
        ("about 5 km", 5),
        ("12%", 12),
        ("10-3", 10),
        ("1/0", None),
        ("none", None),
    ],
)
def test_numbers_are_read_in_every_usual_notation(text: str, value: float | None) -> None:
    assert parse_number(text) == pytest.approx(value)


def test_number_takes_its_tolerance_from_the_task() -> None:
    assert score(task("number", "2.50", rel_tol=0.01), "2.51 m/s") == 1.0
    assert score(task("number", "1000000"), "999999") == 0.0
    assert score(task("number", "2.50"), "2.51") == 0.0
    with pytest.raises(ValueError, match="gold='blue' is not a number"):
        score(task("number", "blue"), "1")


@pytest.mark.parametrize(
    ("gold", "answer", "quality"),
    [
        (r"\frac{1}{2}", "0.5", 1.0),
        ("x+1", "so we have: the answer is $1+x$.", 1.0),
        (r"\sqrt{8}", r"\boxed{2\sqrt{2}}", 1.0),
        (r"x \in [0,1)", "[0,1)", 1.0),
        ("-15", "x=-15", 1.0),
        ("5", r"\boxed{6}", 0.0),
        ("5", "", 0.0),
    ],
)
def test_math_accepts_equal_expressions_only(gold: str, answer: str, quality: float) -> None:
    assert score(task("math", gold), answer) == quality


def test_math_works_outside_the_main_thread() -> None:
    seen: list[float] = []
    worker = threading.Thread(target=lambda: seen.append(score(task("math", "x+2"), "2+x")))
    worker.start()
    worker.join()
    assert seen == [1.0]


@pytest.mark.parametrize("bomb", ["3^{9^{9^9}}", "x^{99999}", "99999!", "(" * 40 + "1" + ")" * 40])
def test_math_refuses_to_evaluate_what_could_run_for_ever(bomb: str) -> None:
    assert score(task("math", "3"), bomb) == 0.0
    assert score(task("math", bomb), bomb) == 1.0


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B) Paris", "B"),
        ("The answer is B. Paris", "B"),
        ("Answer: C: 5", "C"),
        ("I would choose option D", "D"),
        ("A train leaves", None),
        ("", None),
    ],
)
def test_choice_letter_is_read_but_an_article_is_not(text: str, letter: str | None) -> None:
    assert choice_letter(text) == letter


def test_choice_also_accepts_the_text_of_the_choice() -> None:
    question = task("choice", "B", choices=["Rome", "Paris"])
    assert score(question, "The answer is Paris.") == 1.0
    assert score(question, "The answer is Rome.") == 0.0
    assert score(question, "(A)") == 0.0


def test_recorded_is_membership_in_the_correct_answers() -> None:
    question = task("recorded", correct_answers=["12", "12.0"])
    assert score(question, " 12 ") == 1.0
    assert score(question, "13") == 0.0
    with pytest.raises(ValueError, match="correct_answers"):
        score(task("recorded"), "12")


@pytest.mark.parametrize("reply", ["Hello!", "You are welcome, see you soon.", "Bonjour à tous"])
def test_chat_accepts_a_genuine_reply(reply: str) -> None:
    assert score(task("chat"), reply) == 1.0


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "  ",
        "42 !!",
        "{}",
        '{"text": "hello"}',
        "[hello]",
        '<tool_call>{"name": "call_gpt_5"}</tool_call>',
        "hello </tool_call>",
        "call_gpt_5_mini",
        "select_response please",
        "<|im_start|>hello",
    ],
)
def test_chat_refuses_empty_text_tool_markup_and_raw_json(reply: str) -> None:
    assert score(task("chat"), reply) == 0.0


def gym_task(strict: bool) -> Task:
    entry = {"question": "", "answer": "Eve is a hero, and Al is a villain.", "metadata": {}}
    return task(
        "reasoning_gym", entry["answer"], dataset="knights_knaves", entry=entry, strict=strict
    )


def test_reasoning_gym_uses_the_data_set_s_own_rules() -> None:
    assert score(gym_task(strict=True), "Answer: Al is a villain, Eve is a hero") == 1.0


def test_reasoning_gym_grades_unless_the_task_is_strict() -> None:
    half = "Eve is a hero, and Al is a hero."
    assert 0.0 < score(gym_task(strict=False), half) < 1.0
    assert score(gym_task(strict=True), half) == 0.0


@pytest.mark.parametrize("name", sorted(EVALUATING_DATASETS))
def test_scorers_that_would_execute_an_answer_are_refused(name: str) -> None:
    entry = {"question": "", "answer": "[1]", "metadata": {}}
    with pytest.raises(ValueError, match="evaluates text as code"):
        score(task("reasoning_gym", "x", dataset=name, entry=entry), "print(1)")


def test_reasoning_gym_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match="metadata lacks 'dataset'"):
        score(task("reasoning_gym", "1"), "1")
    with pytest.raises(ValueError, match="'nope' is not a reasoning-gym dataset"):
        score(task("reasoning_gym", "1", dataset="nope", entry={}), "2")


@given(st.sampled_from(sorted(set(VERIFIERS) - {"reasoning_gym", "math"})), st.text(max_size=60))
def test_quality_is_always_between_0_and_1(verifier: str, answer: str) -> None:
    gold = "B" if verifier == "choice" else "5"
    assert 0.0 <= score(task(verifier, gold, correct_answers=["5"]), answer) <= 1.0


def test_importing_verifiers_loads_neither_sympy_nor_reasoning_gym() -> None:
    code = (
        "import sys, xrouter.verifiers, xrouter.data.offline, xrouter.fleets.simulated;"
        "print(sorted({'sympy', 'reasoning_gym', 'math_verify', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
