"""OpenAI's wire shapes: requests in, replies, chunks and errors out. No routing happens here."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

JSON = dict[str, Any]
BIG = 2**53
REQUEST_FIELDS = frozenset({"model", "messages", "stream", "stream_options", "router"})
CHUNK_WORDS = re.compile(r"\s*\S+|\s+$")


class ApiError(Exception):
    """An error as OpenAI clients read it.

    ``status`` decides whether they try again: 408, 409, 429 and 5xx they do, so a refusal for
    good is none of these.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def envelope(self) -> JSON:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


class _Open(BaseModel):
    """A part of a request; fields that are not named here pass through."""

    model_config = ConfigDict(extra="allow")


class ContentPart(_Open):
    type: str = Field(max_length=64)


class ChatMessage(_Open):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[JSON] | None = None


class StreamOptions(_Open):
    include_usage: bool | None = None


class RouterOptions(BaseModel):
    """The router's own dial: ``extra_body={"router": {...}}``."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    cost_weight: float | None = Field(
        None, alias="lambda", ge=0, le=1000, description="Weight of cost against quality."
    )
    max_cost_usd: float | None = Field(None, gt=0, le=1000, description="Bound for this request.")
    pool: list[str] | str | None = Field(None, description="Model ids, or a pool's name.")
    mode: Literal["agent", "simple"] | None = None
    max_turns: int | None = Field(None, ge=1, le=8)
    timeout_s: float | None = Field(None, gt=0, le=3600)


class ChatRequest(_Open):
    """A chat completion request. Parameters of the models (tools, stop, seed, …) and unknown
    fields are handed on to the model that is chosen."""

    model: str = Field(min_length=1, max_length=200)
    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=16)
    max_tokens: int | None = Field(None, ge=1, le=BIG)
    max_completion_tokens: int | None = Field(None, ge=1, le=BIG)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-BIG, le=BIG)
    stop: str | list[str] | None = None
    tools: list[JSON] | None = None
    tool_choice: str | JSON | None = None
    response_format: JSON | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    service_tier: Literal["auto", "default"] | None = None
    router: RouterOptions | None = None

    def options(self) -> JSON:
        """What is handed on to the models."""
        given = self.model_dump(exclude_unset=True)
        hidden = REQUEST_FIELDS | {"service_tier"}
        return {k: v for k, v in given.items() if k not in hidden and v is not None}

    def wire_messages(self) -> list[JSON]:
        """The conversation as the client wrote it."""
        return [m.model_dump(exclude_unset=True) for m in self.messages]


def parse_request(raw: bytes) -> ChatRequest:
    """Read a request body. Raises :class:`ApiError` (400) that names field and mend."""
    try:
        data = json.loads(raw, parse_constant=_no_constant)
        json.dumps(data, ensure_ascii=False).encode()
    except (UnicodeError, RecursionError):
        raise ApiError(400, "the body is not valid UTF-8 JSON text, or nested too deeply") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return ChatRequest.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        shown = repr(first.get("input"))[:80]
        raise ApiError(400, f"{path}={shown}: {first['msg']}", param=path) from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message; parts that are not text become their type in brackets."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(
        part["text"] if isinstance(part.get("text"), str) else f"[{part.get('type')}]"
        for part in content
    )


def needs_verbatim(request: ChatRequest) -> bool:
    """Whether only a model's own reply will do, so that the router must pick one model: the
    client's tools, a response format, several choices, log-probabilities, or parts that are not
    text."""
    given = request.options()
    wanted = ("tools", "functions", "logprobs", "modalities", "audio")
    form = (given.get("response_format") or {}).get("type", "text")
    messages = request.wire_messages()
    return (
        any(given.get(name) for name in wanted)
        or form != "text"
        or (given.get("n") or 1) > 1
        or messages[-1]["role"] not in ("user", "system", "developer")
        or any(m["role"] in ("tool", "function") or m.get("tool_calls") for m in messages)
        or any(_has_media(m) for m in messages)
    )


def _has_media(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(p.get("type") != "text" for p in content)


def request_id(given: str | None, fallback: str) -> str:
    """The client's ``x-request-id`` if it may stand in a header and a log, else ``fallback``."""
    return given if given and re.fullmatch(r"[\w.:-]{1,128}", given) else fallback


class Reply:
    """Builds the JSON of one reply, whole or in chunks, with the same id and time."""

    def __init__(self, ident: str, model: str) -> None:
        self.id = ident
        self.model = model
        self.created = int(time.time())

    def whole(self, choices: list[JSON], usage: JSON, metadata: JSON) -> JSON:
        return self._envelope("chat.completion") | {
            "choices": choices,
            "usage": usage,
            "router_metadata": metadata,
        }

    def chunk(self, choices: list[JSON], **more: Any) -> JSON:
        return self._envelope("chat.completion.chunk") | {"choices": choices} | more

    def delta(self, index: int, delta: JSON, **more: Any) -> JSON:
        return self.chunk([{"index": index, "delta": delta, "finish_reason": None, **more}])

    def _envelope(self, kind: str) -> JSON:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(data: JSON) -> bytes:
    """One server-sent event."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def comment(text: str) -> bytes:
    """A server-sent comment: keeps the connection alive, and clients skip it."""
    return f": {text}\n\n".encode()


def choice_deltas(choice: Mapping[str, Any]) -> Iterator[JSON]:
    """A finished choice as the deltas a stream would have brought, a word at a time."""
    index, message = choice["index"], choice["message"]
    yield {"index": index, "delta": {"role": "assistant", "content": ""}}
    for name in ("reasoning_content", "content", "refusal"):
        for word in CHUNK_WORDS.findall(message.get(name) or ""):
            yield {"index": index, "delta": {name: word}}
    for position, call in enumerate(message.get("tool_calls") or ()):
        yield {"index": index, "delta": {"tool_calls": [{"index": position, **call}]}}


def text_choice(text: str, finish_reason: str = "stop") -> JSON:
    """A choice that holds text only."""
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}


def model_card(ident: str, created: int, owner: str, **more: Any) -> JSON:
    return {"id": ident, "object": "model", "created": created, "owned_by": owner, **more}


def listing(rows: Iterable[JSON]) -> JSON:
    return {"object": "list", "data": list(rows)}
