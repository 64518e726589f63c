"""The router's tools: ``call_<model>`` for each pool member, and ``select_response``.

Schemas are generated from the catalog, so a model that is not in the pool cannot be offered.
Parsing is forgiving where intent is plain and explicit where it is not: what cannot be read
becomes a message for the policy, never an exception.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from xrouter.catalog import ModelSpec
from xrouter.episode import ToolCall

SELECT_TOOL = "select_response"
OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_TEMPERATURE = 2.0
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)


class ToolError(ValueError):
    """A tool call that cannot be carried out; the message is written for the policy."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A valid request to call a pool member."""

    model: str
    system_prompt: str | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """A valid request to return an earlier answer of ``model`` verbatim."""

    model: str


def tool_schemas(pool: Iterable[ModelSpec], *, select: bool = True) -> list[dict[str, Any]]:
    """OpenAI function schemas for a pool, with price and tier in each description."""
    schemas = [
        _function(
            spec.tool_name,
            f"Ask {spec.name or spec.id} ({spec.tier} tier; ${spec.input_usd_per_million:g} in, "
            f"${spec.output_usd_per_million:g} out per million tokens; "
            f"strengths: {', '.join(spec.capabilities) or 'general'}). "
            "The user's request and history are appended for you.",
            {
                "optimized_system_prompt": {
                    "type": "string",
                    "description": "System prompt for the model, shaped for this request.",
                },
                "temperature": {
                    "type": "number",
                    "minimum": 0,
                    "maximum": MAX_TEMPERATURE,
                    "description": "Sampling temperature.",
                },
            },
            [],
        )
        for spec in pool
    ]
    if select:
        schemas.append(
            _function(
                SELECT_TOOL,
                "Return the answer of a model that was called before, word for word.",
                {
                    "model_call_name": {
                        "type": "string",
                        "description": "The tool that gave the answer, such as call_gpt_5_mini.",
                    }
                },
                ["model_call_name"],
            )
        )
    return schemas


def _function(
    name: str, description: str, properties: dict[str, Any], required: list[str]
) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            },
        },
    }


def format_tool_call(call: ToolCall) -> str:
    """Hermes notation of one call; :func:`parse_tool_calls` reads it back."""
    body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
    return f"{OPEN}{body.replace('<', chr(92) + 'u003c')}{CLOSE}"


def parse_tool_calls(text: str) -> tuple[str, tuple[ToolCall, ...], tuple[str, ...]]:
    """Split router text into (content, tool calls, errors).

    Reads Hermes blocks ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``; a missing
    closing tag is accepted. Each unreadable block yields one error text.
    """
    calls: list[ToolCall] = []
    errors: list[str] = []
    for match in _BLOCK.finditer(text):
        try:
            calls.append(read_call(match.group(1)))
        except ToolError as error:
            errors.append(str(error))
    content = _BLOCK.sub("", text).replace(CLOSE, "").strip()
    return content, tuple(calls), tuple(errors)


def read_call(text: str, *, call_id: str = "") -> ToolCall:
    """Read one JSON tool call. Raises :class:`ToolError` with a message for the policy."""
    shown = text.strip()[:80]
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ToolError(
            f"malformed tool call {shown!r}: not valid JSON; write "
            '{"name": "call_<model>", "arguments": {}}'
        ) from None
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ToolError(f"malformed tool call {shown!r}: needs a string field 'name'")
    return ToolCall(data["name"], read_arguments(data.get("arguments")), call_id)


def read_arguments(raw: Any) -> dict[str, Any]:
    """Arguments as a dict; accepts a JSON string, as OpenAI's wire format has it."""
    if isinstance(raw, str):
        try:
            raw = json.loads(raw) if raw.strip() else {}
        except (ValueError, RecursionError):
            raise ToolError(f"malformed arguments {raw[:80]!r}: not valid JSON") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ToolError(f"malformed arguments {str(raw)[:80]!r}: must be a JSON object")
    return raw


def resolve(
    call: ToolCall, pool: Iterable[ModelSpec], answered: Iterable[str]
) -> ModelCall | Selection:
    """Check a call against the pool and the models that have ``answered`` so far.

    Raises :class:`ToolError` for unknown tools, bad arguments, or a selection of a model that
    has not answered.
    """
    by_tool = {spec.tool_name: spec.id for spec in pool}
    if call.name == SELECT_TOOL:
        return _selection(call.arguments, by_tool, set(answered))
    if call.name not in by_tool:
        known = ", ".join([*by_tool, SELECT_TOOL])
        raise ToolError(f"unknown tool {call.name[:80]!r}; available: {known}")
    prompt = call.arguments.get("optimized_system_prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise ToolError(f"{call.name}: optimized_system_prompt must be a string")
    return ModelCall(by_tool[call.name], prompt or None, _temperature(call))


def _temperature(call: ToolCall) -> float | None:
    value = call.arguments.get("temperature")
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        value = math.nan
    if not 0 <= value <= MAX_TEMPERATURE:
        given = str(call.arguments["temperature"])[:80]
        raise ToolError(
            f"{call.name}: temperature={given!r} must be a number between 0 and {MAX_TEMPERATURE:g}"
        )
    return float(value)


def _selection(
    arguments: Mapping[str, Any], by_tool: Mapping[str, str], answered: set[str]
) -> Selection:
    name = arguments.get("model_call_name")
    if not isinstance(name, str) or not name:
        raise ToolError(f"{SELECT_TOOL}: model_call_name must be a tool name such as call_gpt_5")
    model = by_tool.get(name, name)
    if model not in answered:
        tools = sorted(t for t, m in by_tool.items() if m in answered)
        raise ToolError(
            f"{SELECT_TOOL}: {name[:80]!r} has not answered; "
            + (f"choose from {', '.join(tools)}" if tools else "call a model first")
        )
    return Selection(model)
