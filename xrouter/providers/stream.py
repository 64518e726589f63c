"""Reading one streamed reply: chunks are put together, and handed on as they come.

Every provider call is streamed, whether the client streams or not. There is one code path, a
call that breaks off is billed for what had come, and both kinds of request cost the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from xrouter.orchestrator import Delta

TEXT_FIELDS = ("content", "reasoning_content", "refusal")


class StreamBroken(Exception):
    """The stream ended before the reply did."""


class ReplyBuilder:
    """Puts choice deltas together into OpenAI choices."""

    def __init__(self) -> None:
        self._choices: dict[int, dict[str, Any]] = {}
        self._tool_calls: dict[int, dict[int, dict[str, Any]]] = {}

    def add(self, delta: Delta) -> None:
        """Add one wire-form choice: ``{"index": 0, "delta": {...}, "finish_reason": None}``."""
        index = int(delta.get("index") or 0)
        choice = self._choices.setdefault(
            index, {"index": index, "message": {"role": "assistant"}, "finish_reason": None}
        )
        content = delta.get("delta") or {}
        for name in TEXT_FIELDS:
            if content.get(name) is not None:
                choice["message"][name] = choice["message"].get(name, "") + content[name]
        for call in content.get("tool_calls") or ():
            self._add_tool_call(index, call)
        if (logprobs := delta.get("logprobs")) and logprobs.get("content"):
            kept = choice.setdefault("logprobs", {"content": [], "refusal": None})
            kept["content"] += logprobs["content"]
        if delta.get("finish_reason"):
            choice["finish_reason"] = delta["finish_reason"]

    def _add_tool_call(self, index: int, part: Mapping[str, Any]) -> None:
        calls = self._tool_calls.setdefault(index, {})
        call = calls.setdefault(
            int(part.get("index") or 0),
            {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
        )
        call["id"] = part.get("id") or call["id"]
        function = part.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    @property
    def choices(self) -> list[dict[str, Any]]:
        """The choices so far, by index; ``content`` is None where there is no text."""
        out = []
        for index, choice in sorted(self._choices.items()):
            message = {"content": None, **choice["message"]}
            message["content"] = message["content"] or None
            if calls := self._tool_calls.get(index):
                message["tool_calls"] = [call for _, call in sorted(calls.items())]
            out.append({"logprobs": None, **choice, "message": message})
        return out

    @property
    def text(self) -> str:
        """The visible answer of the first choice."""
        return str(self.choices[0]["message"]["content"] or "") if self._choices else ""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls of the first choice."""
        return self.choices[0]["message"].get("tool_calls", []) if self._choices else []

    @property
    def finish_reason(self) -> str | None:
        return self._choices[0]["finish_reason"] if 0 in self._choices else None

    @property
    def empty(self) -> bool:
        """True until the first choice arrived, be it without content."""
        return not self._choices

    @property
    def all_text(self) -> str:
        """Everything that was written, for counting its tokens."""
        parts: list[str] = []
        for choice in self.choices:
            message = choice["message"]
            parts += [message.get(name) or "" for name in TEXT_FIELDS]
            for call in message.get("tool_calls", ()):
                parts += [call["function"]["name"], call["function"]["arguments"]]
        return "".join(parts)


async def read_stream(
    stream: Any,
    reply: ReplyBuilder,
    *,
    idle_timeout_s: float,
    choices: int = 1,
    on_delta: Callable[[Delta], None] | None = None,
) -> Any:
    """Read a LiteLLM stream to its end into ``reply``; returns the provider's usage, or None.

    ``on_delta`` gets what has content. Finish reasons are known for good at the end, and stand in
    ``reply``.

    Raises :class:`StreamBroken` when nothing comes for ``idle_timeout_s``, or when the provider
    closed the stream before all ``choices`` had a finish reason (LiteLLM would invent one), and
    whatever the connection raises. An error after that is none: the reply is whole.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(idle_timeout_s) as timer:
            async for chunk in stream:
                timer.reschedule(loop.time() + idle_timeout_s)
                for delta in _wire_deltas(chunk):
                    reply.add(delta)
                    if on_delta is not None and delta["delta"]:
                        on_delta({k: v for k, v in delta.items() if k != "finish_reason"})
    except Exception as error:
        if not _finished(stream, choices):
            if isinstance(error, TimeoutError) and timer.expired():
                raise StreamBroken(f"nothing came for {idle_timeout_s:g} s") from None
            raise
    finally:
        with suppress(Exception):
            await stream.aclose()
    if not _finished(stream, choices):
        raise StreamBroken("the provider closed the stream before the end of the reply")
    return _usage(stream)


class WholeReply:
    """A reply that came in one piece, in the shape of a stream, for models that may not be
    streamed."""

    def __init__(self, response: Any) -> None:
        self.chunks = [SimpleNamespace(choices=[], usage=getattr(response, "usage", None))]
        for choice in response.choices:
            message = choice.message
            calls = [
                SimpleNamespace(index=i, id=call.id, function=call.function)
                for i, call in enumerate(message.tool_calls or ())
            ]
            delta = {name: getattr(message, name, None) for name in ("role", *TEXT_FIELDS)}
            self.chunks[0].choices.append(
                SimpleNamespace(
                    index=choice.index,
                    delta=SimpleNamespace(**delta, tool_calls=calls),
                    finish_reason=choice.finish_reason,
                    logprobs=getattr(choice, "logprobs", None),
                )
            )

    async def __aiter__(self) -> AsyncIterator[Any]:
        for chunk in self.chunks:
            yield chunk

    async def aclose(self) -> None:
        """Nothing is open."""


def _raw(stream: Any) -> Iterable[Any]:
    """The chunks as the provider sent them, without those that LiteLLM adds; newest first."""
    return reversed(getattr(stream, "chunks", None) or [])


def _finished(stream: Any, choices: int) -> bool:
    """Whether the provider ended the reply. LiteLLM keeps the finish reason of one choice only;
    with several, usage, which comes last, tells."""
    ended = any(c.finish_reason for chunk in _raw(stream) for c in chunk.choices)
    return ended and (choices == 1 or _usage(stream) is not None)


def _usage(stream: Any) -> Any:
    return next((u for c in _raw(stream) if (u := getattr(c, "usage", None)) is not None), None)


def _wire_deltas(chunk: Any) -> list[dict[str, Any]]:
    """A chunk's choices as plain dicts without empty fields."""
    out = []
    for choice in chunk.choices:
        delta: dict[str, Any] = {}
        for name in ("role", *TEXT_FIELDS):
            if (value := getattr(choice.delta, name, None)) is not None:
                delta[name] = value
        if calls := getattr(choice.delta, "tool_calls", None):
            delta["tool_calls"] = [_wire_tool_call(call) for call in calls]
        wire: dict[str, Any] = {"index": choice.index, "delta": delta}
        wire["finish_reason"] = choice.finish_reason
        if (logprobs := getattr(choice, "logprobs", None)) is not None:
            wire["logprobs"] = logprobs if isinstance(logprobs, dict) else logprobs.model_dump()
        out.append(wire)
    return out


def _wire_tool_call(call: Any) -> dict[str, Any]:
    """A tool-call delta; id, type and name stand in the first one only."""
    function = {"arguments": call.function.arguments or ""}
    if not call.id:
        return {"index": call.index, "function": function}
    named = {"name": call.function.name or "", **function}
    return {"index": call.index, "id": call.id, "type": "function", "function": named}
