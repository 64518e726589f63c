"""Procedural tasks: balanced, disjoint, repeatable, and answerable."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrouter.data.chat import CHAT_KINDS, chat_drafts, chat_reply, guess_kind
from xrouter.data.gym import GYMS
from xrouter.data.offline import BANDS, DEFAULT_SIZES, all_cells, build_tasks
from xrouter.data.procedural import FORMULAS, band_of, program_output, science
from xrouter.episode import DOMAINS, Task
from xrouter.verifiers import EVALUATING_DATASETS, score

Splits = dict[str, list[Task]]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return build_tasks()


def every(splits: Splits) -> list[Task]:
    return [task for tasks in splits.values() for task in tasks]


def digest(splits: Splits) -> str:
    rows = [task.to_dict() for task in every(splits)]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def test_default_sizes_are_built_in_under_ten_cpu_seconds() -> None:
    started = time.process_time()
    built = build_tasks(seed=11)
    assert time.process_time() - started < 10
    assert {split: len(tasks) for split, tasks in built.items()} == dict(DEFAULT_SIZES)


def test_splits_share_no_query_and_ids_are_unique(splits: Splits) -> None:
    tasks = every(splits)
    assert len({t.query for t in tasks}) == len({t.id for t in tasks}) == len(tasks)
    assert all(task.split == split for split, ts in splits.items() for task in ts)


@pytest.mark.parametrize("split", sorted(DEFAULT_SIZES))
def test_each_split_is_balanced_over_domains_and_bands(splits: Splits, split: str) -> None:
    cells = Counter((t.domain, t.band) for t in splits[split])
    counts = [cells[d, b] for d in DOMAINS if d != "chat" for b in BANDS]
    assert max(counts) - min(counts) <= 1
    assert cells["chat", "easy"] == pytest.approx(DEFAULT_SIZES[split] / 13, abs=1)


def test_every_generator_of_a_band_has_its_turn(splits: Splits) -> None:
    assert {(t.source, t.difficulty) for t in splits["train"]} == {
        (c.source, c.difficulty) for c in all_cells()
    }


def test_gold_answers_score_1_after_a_round_trip_through_json(splits: Splits) -> None:
    for task in every(splits):
        again = Task.from_dict(json.loads(json.dumps(task.to_dict())))
        assert again == task
        if task.verifier != "chat":
            assert score(again, task.gold) == 1.0, task.id


def test_a_wrong_answer_never_earns_partial_credit(splits: Splits) -> None:
    for task in splits["validation"]:
        if task.verifier != "chat":
            assert score(task, "-98765") == 0.0, task.id


def test_queries_are_short_and_carry_no_boilerplate(splits: Splits) -> None:
    for task in every(splits):
        assert 0 < len(task.query) <= 420
        assert "final answer" not in task.query
        assert "\n\n\n" not in task.query


def test_shortening_a_question_leaves_no_gap_behind(splits: Splits) -> None:
    assert not [t.id for t in every(splits) if "None" in t.query]


def test_bands_follow_from_difficulty(splits: Splits) -> None:
    assert all(t.difficulty is not None and t.band == band_of(t.difficulty) for t in every(splits))
    assert [band_of(d) for d in (0.0, 0.33, 0.34, 0.66, 0.67, 1.0)] == [
        "easy",
        "easy",
        "medium",
        "medium",
        "hard",
        "hard",
    ]


def test_the_same_seed_gives_the_same_tasks_and_another_gives_others() -> None:
    sizes = {"train": 60, "test": 60}
    first, again, other = build_tasks(1, sizes), build_tasks(1, sizes), build_tasks(2, sizes)
    assert first == again
    shared = {t.id for t in first["test"]} & {t.id for t in other["test"]}
    assert len(shared) < 10


def test_the_test_split_does_not_change_with_the_size_of_the_others() -> None:
    small = build_tasks(0, {"train": 10, "test": 40})
    large = build_tasks(0, {"train": 90, "validation": 20, "test": 40})
    assert small["test"] == large["test"]


def test_tasks_do_not_depend_on_python_s_hash_seed() -> None:
    sizes = {"test": 400}
    code = (
        "import hashlib, json; from xrouter.data.offline import build_tasks;"
        f"rows = [t.to_dict() for t in build_tasks(4, {sizes})['test']];"
        "print(hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest())"
    )
    env = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip() == digest(build_tasks(4, sizes))


def test_a_subset_of_domains_takes_all_the_places() -> None:
    built = build_tasks(0, {"test": 31}, domains=["table", "stem"])
    assert Counter(t.domain for t in built["test"]) == {"table": 16, "stem": 15}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"sizes": {"dev": 3}}, "unknown splits"),
        ({"sizes": {"test": -1}}, "must be >= 0"),
        ({"domains": ["poetry"]}, "use one or more of"),
        ({"domains": []}, "use one or more of"),
        ({"sizes": {"test": 10**5}, "domains": ["chat"]}, "has only"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tasks(0, **kwargs)


def test_no_generator_is_judged_by_a_scorer_that_executes_answers() -> None:
    judged = {g.dataset for g in GYMS if g.verifier == "reasoning_gym"}
    assert not judged & EVALUATING_DATASETS


def test_difficulty_rises_with_the_level_of_a_generator() -> None:
    levels = [[difficulty for difficulty, _ in gym.levels] for gym in GYMS]
    assert all(level == sorted(set(level)) for level in levels)


def test_in_law_questions_are_left_out(splits: Splits) -> None:
    assert not [t for t in every(splits) if "in-law" in t.gold]


@given(st.integers(0, 10**6), st.sampled_from([0, 1, 2]))
def test_program_output_is_what_python_prints(seed: int, level: int) -> None:
    draft = program_output(Random(seed), level)
    printed: list[str] = []
    code = draft.query.partition("\n")[2]
    exec(code, {"print": lambda value: printed.append(str(value)), "__builtins__": _BUILTINS})
    assert printed == [draft.gold]


_BUILTINS = {"range": range, "sum": sum, "sorted": sorted, "enumerate": enumerate}


@given(st.sampled_from(sorted(FORMULAS)), st.integers(0, 10**6), st.sampled_from([0, 1, 2]))
def test_science_questions_have_finite_answers_and_no_open_slots(
    topic: str, seed: int, level: int
) -> None:
    draft = science(topic)(Random(seed), level)
    assert abs(float(draft.gold)) < 1e9
    assert "{" not in draft.query


def test_table_answers_can_be_recomputed_from_the_table() -> None:
    built = build_tasks(5, {"test": 120}, domains=["table"])["test"]
    sums = [t for t in built if t.source == "xrouter:table_sum"]
    assert sums
    for task in sums:
        *lines, question = task.query.splitlines()
        cells = [
            [c.strip() for c in line.strip("|").replace("|", ",").split(",")] for line in lines
        ]
        column = cells[0].index(question.rstrip("?").split()[-1])
        rows = [row for row in cells[1:] if not row[0].startswith("---")]
        assert sum(int(row[column]) for row in rows) == int(task.gold)


@pytest.mark.parametrize("kind", CHAT_KINDS)
def test_chat_messages_are_many_distinct_and_get_a_genuine_reply(kind: str) -> None:
    drafts = chat_drafts(kind)
    assert len({d.query for d in drafts}) == len(drafts) > 100
    for draft in drafts[::7]:
        task = Task("c", draft.query, "chat", verifier="chat", metadata=draft.metadata)
        assert score(task, chat_reply(task)) == 1.0
        assert guess_kind(draft.query) == kind
        assert chat_reply(task) == chat_reply(task.public())
