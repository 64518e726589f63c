import json
import re

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from xrouter.catalog import Catalog, ModelSpec
from xrouter.episode import ToolCall
from xrouter.tools import (
    SELECT_TOOL,
    ModelCall,
    Selection,
    ToolError,
    format_tool_call,
    parse_tool_calls,
    read_arguments,
    read_call,
    resolve,
    tool_schemas,
)

POOL = (
    ModelSpec("gpt-5", 1.25, 10.0, ("premium",), capabilities=("math", "code")),
    ModelSpec("gpt-4.1-mini", 0.4, 1.6, ("standard",)),
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
tool_calls = st.builds(ToolCall, st.text(), st.dictionaries(st.text(), json_values, max_size=4))
router_text = st.lists(
    st.sampled_from(
        ["<tool_call>", "</tool_call>", '{"name": "call_gpt_5"', ', "arguments": {}}', "{", "}"]
    )
    | st.text(max_size=12),
    max_size=12,
).map("".join)


def test_every_model_of_the_catalog_gets_a_valid_schema_and_a_safe_name():
    schemas = tool_schemas(Catalog.load())
    names = [s["function"]["name"] for s in schemas]
    assert len(set(names)) == len(names) == len(Catalog.load()) + 1
    for schema in schemas:
        function = schema["function"]
        assert schema["type"] == "function"
        assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", function["name"])
        assert 0 < len(function["description"]) <= 1024
        jsonschema.Draft202012Validator.check_schema(function["parameters"])
    json.dumps(schemas)


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        ({}, True),
        ({"optimized_system_prompt": "Think.", "temperature": 0.7}, True),
        ({"temperature": 2.5}, False),
        ({"optimized_system_prompt": 3}, False),
        ({"prompt": "x"}, False),
    ],
)
def test_the_schema_of_a_model_tool_accepts_what_the_runtime_accepts(arguments, valid):
    parameters = tool_schemas(POOL)[0]["function"]["parameters"]
    assert jsonschema.Draft202012Validator(parameters).is_valid(arguments) is valid


def test_descriptions_show_tier_and_price_so_that_the_router_can_weigh_them():
    description = tool_schemas(POOL)[0]["function"]["description"]
    assert all(part in description for part in ("premium", "$1.25 in", "$10 out", "math, code"))


def test_only_pool_members_are_offered_and_select_can_be_left_out():
    assert [s["function"]["name"] for s in tool_schemas(POOL, select=False)] == [
        "call_gpt_5",
        "call_gpt_4_1_mini",
    ]
    assert tool_schemas(POOL)[-1]["function"]["parameters"]["required"] == ["model_call_name"]


@example([ToolCall("a</tool_call>", {"<tool_call>": "</tool_call>"})], "")
@given(st.lists(tool_calls, max_size=4), st.text().filter(lambda t: "tool_call" not in t))
def test_written_calls_are_read_back_with_the_text_around_them(calls, text):
    written = text + "".join(format_tool_call(c) for c in calls)
    content, parsed, errors = parse_tool_calls(written)
    assert (content, list(parsed), errors) == (text.strip(), calls, ())


@given(router_text)
def test_no_text_makes_the_parser_raise_and_no_tag_is_left_in_the_content(text):
    content, calls, errors = parse_tool_calls(text)
    assert "<tool_call>" not in content
    assert "</tool_call>" not in content
    assert len(calls) + len(errors) == text.count("<tool_call>")
    assert all(isinstance(c.name, str) and isinstance(c.arguments, dict) for c in calls)
    assert all(errors)


def test_a_missing_closing_tag_is_forgiven():
    text = '<tool_call>{"name": "a"}<tool_call>{"name": "b", "arguments": {"x": 1}}'
    assert parse_tool_calls(text) == ("", (ToolCall("a"), ToolCall("b", {"x": 1})), ())


def test_one_unreadable_block_does_not_hide_the_readable_ones():
    text = 'so: <tool_call>{oops}</tool_call><tool_call>{"name": "b"}</tool_call> done'
    content, calls, errors = parse_tool_calls(text)
    assert (content, calls) == ("so:  done", (ToolCall("b"),))
    assert len(errors) == 1
    assert "{oops}" in errors[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{'name': 1}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("1" * 10_000, "not valid JSON"),
        ("[]", "needs a string field 'name'"),
        ('{"arguments": {}}', "needs a string field 'name'"),
        ('{"name": 5}', "needs a string field 'name'"),
        ('{"name": "a", "arguments": [1]}', "must be a JSON object"),
        ('{"name": "a", "arguments": "{"}', "malformed arguments '{': not valid JSON"),
    ],
)
def test_an_unreadable_call_says_what_is_wrong_in_a_short_message(text, message):
    with pytest.raises(ToolError, match=re.escape(message)) as caught:
        read_call(text)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("raw", [None, "", "  ", {}, "{}"])
def test_absent_arguments_are_empty(raw):
    assert read_arguments(raw) == {}


def test_arguments_may_be_a_json_string_as_on_openais_wire():
    call = read_call('{"name": "a", "arguments": "{\\"temperature\\": 0}"}', call_id="c1")
    assert call == ToolCall("a", {"temperature": 0}, "c1")


def test_a_good_model_call_is_resolved_to_its_model():
    call = ToolCall("call_gpt_4_1_mini", {"optimized_system_prompt": "S", "temperature": "0.5"})
    assert resolve(call, POOL, []) == ModelCall("gpt-4.1-mini", "S", 0.5)
    assert resolve(ToolCall("call_gpt_5"), POOL, []) == ModelCall("gpt-5", None, None)


@pytest.mark.parametrize("name", ["call_gpt_5", "gpt-5"])
def test_a_selection_may_name_the_tool_or_the_model(name):
    call = ToolCall(SELECT_TOOL, {"model_call_name": name})
    assert resolve(call, POOL, ["gpt-5"]) == Selection("gpt-5")


@pytest.mark.parametrize(
    ("call", "answered", "message"),
    [
        (ToolCall("call_gpt_9"), [], "unknown tool 'call_gpt_9'; available: call_gpt_5, call_"),
        (ToolCall("x" * 5000), [], "unknown tool 'xxx"),
        (ToolCall("call_gpt_5", {"optimized_system_prompt": 3}), [], "must be a string"),
        (ToolCall("call_gpt_5", {"temperature": "hot"}), [], "temperature='hot' must be a number"),
        (ToolCall("call_gpt_5", {"temperature": "h" * 9999}), [], "must be a number between 0 and"),
        (ToolCall("call_gpt_5", {"temperature": True}), [], "must be a number between 0 and 2"),
        (ToolCall("call_gpt_5", {"temperature": -0.1}), [], "must be a number between 0 and 2"),
        (ToolCall("call_gpt_5", {"temperature": float("nan")}), [], "must be a number"),
        (ToolCall("call_gpt_5", {"temperature": [1]}), [], "must be a number between 0 and 2"),
        (ToolCall(SELECT_TOOL), [], "model_call_name must be a tool name"),
        (ToolCall(SELECT_TOOL, {"model_call_name": 7}), [], "model_call_name must be a tool name"),
        (ToolCall(SELECT_TOOL, {"model_call_name": "call_gpt_5"}), [], "call a model first"),
        (
            ToolCall(SELECT_TOOL, {"model_call_name": "call_gpt_5"}),
            ["gpt-4.1-mini"],
            "'call_gpt_5' has not answered; choose from call_gpt_4_1_mini",
        ),
    ],
)
def test_a_call_that_cannot_be_carried_out_says_why(call, answered, message):
    with pytest.raises(ToolError, match=re.escape(message)) as caught:
        resolve(call, POOL, answered)
    assert len(str(caught.value)) < 400


@given(tool_calls, st.sampled_from(["call_gpt_5", SELECT_TOOL, None]))
def test_resolving_any_call_gives_a_result_or_a_tool_error(call, name):
    call = ToolCall(name or call.name, call.arguments)
    try:
        wanted = resolve(call, POOL, ["gpt-5"])
    except ToolError:
        return
    assert isinstance(wanted, (ModelCall, Selection))
    assert wanted.model == "gpt-5"
