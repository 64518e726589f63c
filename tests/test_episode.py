import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xrouter.episode import (
    Completion,
    Decision,
    Episode,
    State,
    Task,
    TokenTrace,
    ToolCall,
    ToolResult,
    Turn,
    answer_groups,
    best_so_far,
)

completions = st.lists(
    st.builds(
        Completion,
        st.sampled_from("abc"),
        st.sampled_from(["", "text"]),
        st.sampled_from([None, "1", "2"]),
        error=st.sampled_from([None, None, "failed"]),
    ),
    max_size=8,
)


def test_a_task_survives_a_round_trip_through_json():
    task = Task(
        "t",
        "q",
        gold="g",
        system="s",
        history=({"role": "user", "content": "hi"},),
        pool=("a", "b"),
        difficulty=0.5,
        metadata={"n": [1, {"x": None}]},
    )
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task


def test_a_task_with_unknown_fields_is_refused_by_name():
    with pytest.raises(ValueError, match=r"task 't': unknown fields \['answer'\]"):
        Task.from_dict({"id": "t", "query": "q", "answer": "42"})


def test_the_public_task_keeps_the_request_and_nothing_of_the_judgement():
    task = Task("t", "q", gold="g", verifier="v", difficulty=0.5, band="hard", metadata={"k": 1})
    public = task.public()
    assert (public.id, public.query) == ("t", "q")
    assert (public.gold, public.verifier, public.difficulty, public.band) == ("", "", None, "")
    assert public.metadata == {}


def test_an_episode_is_written_as_json_with_its_costs():
    result = ToolResult(ToolCall("call_a", {"t": 1}, "c1"), Completion("a", "x", cost_usd=0.25))
    trace = TokenTrace((1, 2), (3,), (-0.5,))
    turn = Turn(0, Decision(cost_usd=0.5, trace=trace), (result,))
    episode = Episode(
        "t", "p", "recorded", "agent", ("a",), (turn,), "x", "select", "a", "selected"
    )
    row = json.loads(json.dumps(episode.to_dict()))
    assert (row["cost_usd"], row["router_cost_usd"], row["models_cost_usd"]) == (0.75, 0.5, 0.25)
    assert row["turns"][0]["decision"]["trace"]["response_ids"] == [3]


def test_errors_of_calls_and_of_models_are_both_listed():
    results = (
        ToolResult(ToolCall("x"), error="unknown tool"),
        ToolResult(ToolCall("y"), Completion("m", "", error="rate limit")),
        ToolResult(ToolCall("z"), Completion("m", "fine")),
    )
    turn = Turn(0, Decision(), results)
    episode = Episode("t", "p", "live", "agent", ("m",), (turn,), "", "none", None, "empty")
    assert episode.errors == ("unknown tool", "rate limit")


def test_the_state_counts_turns_money_and_good_answers():
    good, bad = Completion("a", "x", cost_usd=1.0), Completion("b", "", error="e", cost_usd=0.5)
    turn = Turn(
        0, Decision(cost_usd=0.25), tuple(ToolResult(ToolCall("c"), c) for c in (good, bad))
    )
    state = State(Task("t", "q"), (), max_turns=3, turns=(turn,))
    assert (state.turns_left, state.spent_usd, state.completions) == (2, 1.75, (good,))


def test_answers_are_grouped_by_how_many_models_gave_them():
    items = [Completion(m, a, a) for m, a in (("a", "1"), ("b", "2"), ("c", "1"))]
    assert [(a, [c.model for c in cs]) for a, cs in answer_groups(items)] == [
        ("1", ["a", "c"]),
        ("2", ["b"]),
    ]


def test_a_model_that_repeats_itself_has_one_voice():
    items = [Completion(m, a, a) for m, a in (("a", "1"), ("a", "1"), ("b", "2"))]
    assert answer_groups(items)[0][0] == "2"


def test_the_latest_answer_wins_a_tie():
    items = [Completion(m, a, a) for m, a in (("a", "1"), ("b", "2"))]
    assert best_so_far(items) == items[1]
    assert best_so_far(reversed(items)) == items[0]


def test_without_any_extracted_answer_the_latest_text_is_the_best():
    items = [Completion("a", "one"), Completion("b", "two"), Completion("c", " ")]
    assert best_so_far(items) == items[1]
    assert best_so_far([Completion("c", " "), Completion("d", "x", error="e")]) is None


@given(completions)
def test_groups_partition_the_good_answers(items):
    grouped = [c for _, group in answer_groups(items) for c in group]
    assert sorted(map(id, grouped)) == sorted(id(c) for c in items if c.ok and c.answer is not None)
    voices = [len({c.model for c in group}) for _, group in answer_groups(items)]
    assert voices == sorted(voices, reverse=True)
    best = best_so_far(items)
    assert best is None or best.ok
