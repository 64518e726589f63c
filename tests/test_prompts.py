import json

from xrouter.catalog import ModelSpec
from xrouter.episode import Completion, Decision, State, Task, ToolCall, ToolResult, Turn
from xrouter.prompts import (
    model_messages,
    render_result,
    request_envelope,
    router_messages,
    router_system_prompt,
)

POOL = (ModelSpec("gpt-5", 1.0, 2.0, ("premium",)), ModelSpec("o3", 1.0, 2.0, ("premium",)))
HISTORY = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})
TASK = Task("t", "2+2?", system="Answer in French.", history=HISTORY, gold="4")


def completion(model: str, answer: str | None, text: str = "", **kw) -> Completion:
    return Completion(model, text or f"It is {answer}.", answer, cost_usd=0.001, **kw)


def result(model: str, answer: str | None = None, **kw) -> ToolResult:
    call = ToolCall(f"call_{model}", {"temperature": 0.5}, id=f"id_{model}")
    return ToolResult(call, **({"completion": completion(model, answer)} | kw))


def test_the_envelope_keeps_the_users_system_prompt_above_the_query():
    assert request_envelope(TASK) == "USER SYSTEM:\nAnswer in French.\n\nUSER QUERY:\n2+2?"
    assert request_envelope(Task("t", "2+2?")) == "USER QUERY:\n2+2?"


def test_the_router_is_told_its_mode_turns_and_cost_weight():
    agent = router_system_prompt(State(TASK, POOL, max_turns=5, cost_weight=0.25))
    simple = router_system_prompt(State(TASK, POOL, mode="simple", cost_weight=2.0))
    assert "at most 5 turns" in agent
    assert "quality: 0.25" in agent
    assert "exactly one tool call" in simple
    assert "quality: 2 " in simple


def test_braces_in_a_request_are_not_taken_for_format_fields():
    state = State(Task("t", "{max_turns} {x}"), POOL)
    assert router_messages(state)[-1]["content"] == "USER QUERY:\n{max_turns} {x}"


def test_router_messages_hold_prompt_history_and_request_in_order():
    messages = router_messages(State(TASK, POOL))
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert tuple(messages[1:3]) == HISTORY
    assert messages[-1]["content"] == request_envelope(TASK)


def test_each_tool_call_is_followed_by_its_result_under_the_same_id():
    turn = Turn(0, Decision("Let me ask."), (result("gpt-5", "4"), result("o3", error="no")))
    asked, first, second = router_messages(State(TASK, POOL, turns=(turn,)))[-3:]
    assert asked["content"] == "Let me ask."
    assert [c["id"] for c in asked["tool_calls"]] == ["id_gpt-5", "id_o3"]
    assert json.loads(asked["tool_calls"][0]["function"]["arguments"]) == {"temperature": 0.5}
    assert [first["tool_call_id"], second["tool_call_id"]] == ["id_gpt-5", "id_o3"]
    assert json.loads(second["content"]) == {"error": "no"}


def test_calls_that_could_not_be_read_are_shown_to_the_router():
    turn = Turn(0, Decision(parse_errors=("malformed tool call",)))
    asked, error = router_messages(State(TASK, POOL, turns=(turn,)))[-2:]
    assert asked == {"role": "assistant", "content": ""}
    assert error == {"role": "user", "content": "TOOL ERROR: malformed tool call"}


def test_a_result_says_which_earlier_answers_it_agrees_with():
    seen = [completion("a", "4"), completion("b", "5"), completion("c", "4")]
    shown = json.loads(render_result(result("c", "4"), seen))
    assert shown["agrees_with"] == ["a"]
    assert shown["final_answer"] == "4"
    assert shown["cost_usd"] == 0.001


def test_results_without_an_answer_agree_with_nothing():
    seen = [completion("a", None), completion("c", None)]
    assert json.loads(render_result(result("c"), seen))["agrees_with"] == []


def test_a_failed_call_is_rendered_as_an_error_and_an_accepted_one_is_not():
    failed = result("o3", completion=completion("o3", None, error="rate limit"))
    assert json.loads(render_result(failed, [])) == {"error": "rate limit"}
    accepted = ToolResult(ToolCall("select_response"))
    assert json.loads(render_result(accepted, [])) == {"status": "accepted"}


def test_a_long_answer_is_cut_in_the_middle_and_says_so():
    long = ToolResult(ToolCall("x"), completion("m", "4", "a" * 600 + "b" * 600))
    shown = json.loads(render_result(long, [], max_chars=100))["response"]
    assert shown == f"{'a' * 50}\n[… 1100 characters left out …]\n{'b' * 50}"


def test_a_called_model_gets_the_routers_prompt_then_the_users_own_then_the_request():
    messages = model_messages(TASK, "Be careful.")
    assert messages[0] == {"role": "system", "content": "Be careful.\n\nAnswer in French."}
    assert tuple(messages[1:3]) == HISTORY
    assert messages[-1] == {"role": "user", "content": "2+2?"}


def test_without_any_system_prompt_a_called_model_gets_none():
    assert model_messages(Task("t", "q"), None) == [{"role": "user", "content": "q"}]
