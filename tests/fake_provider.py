"""A provider that speaks the OpenAI protocol and misbehaves on demand.

Run it as a process of its own::

    python tests/fake_provider.py --port 9100

It keeps books: ``GET /books`` lists what each request consumed, whatever it reported to the
client, so that a bill can be compared with the truth. ``POST /control`` sets faults::

    {"faults": {"gpt-4o": ["500", "ok"]}, "rate": 0.1, "kinds": ["cut"], "token_delay_s": 0.01}

``faults`` are queues by model, used up one per request; after them a random fault is drawn with
probability ``rate``. A user message can also ask for things: ``[[words=50]]``, ``[[tool]]``,
``[[cached=20]]``, ``[[fault=cut]]``.

Nothing of xrouter is imported here: the counting is done again, from the published rules.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import random
import re
import time
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

spec = importlib.util.find_spec("litellm")
if spec is not None and spec.origin:
    folder = Path(spec.origin).parent / "litellm_core_utils" / "tokenizers"
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(folder))

import tiktoken  # noqa: E402  (reads the cache folder when it is first used)

ENCODING = tiktoken.get_encoding("cl100k_base")
WORDS = (
    "the",
    "and",
    "one",
    "time",
    "people",
    "way",
    "water",
    "world",
    "house",
    "light",
    "small",
    "large",
    "river",
    "stone",
    "paper",
    "green",
    "music",
    "number",
    "answer",
    "morning",
    "winter",
    "garden",
    "window",
    "market",
    "question",
)
FAULTS = (
    "429",
    "500",
    "hang",
    "drip",
    "cut",
    "early_eof",
    "usage_missing",
    "usage_zero",
    "usage_huge",
    "usage_negative",
    "invalid_json",
)
CUT_AFTER = 3


@dataclass
class Entry:
    """One request in the books: tokens that were really read and written."""

    id: str
    model: str
    fault: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    status: int = 200
    finished: bool = False
    request: dict[str, Any] = field(default_factory=dict)


class Provider:
    """State of the process: faults to come, and the books."""

    def __init__(self, seed: int = 0) -> None:
        self.reset(seed)

    def reset(self, seed: int = 0) -> None:
        self.queues: dict[str, deque[str]] = defaultdict(deque)
        self.rate = 0.0
        self.kinds: tuple[str, ...] = FAULTS
        self.token_delay_s = 0.0
        self.drip_s = 0.2
        self.hang_s = 60.0
        self.keep_requests = True
        self.keep_books = True
        self.random = random.Random(seed)
        self.books: list[Entry] = []

    def next_fault(self, model: str, text: str) -> str:
        if asked := re.search(r"\[\[fault=(\w+)\]\]", text):
            return asked.group(1)
        if self.queues[model]:
            return self.queues[model].popleft()
        if self.rate and self.random.random() < self.rate:
            return self.random.choice(self.kinds)
        return "ok"


PROVIDER = Provider()


def error(
    status: int, message: str, *, code: str | None = None, kind: str = "api_error"
) -> Response:
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    headers = {"retry-after": "0"} if status == 429 else {}
    return JSONResponse(body, status_code=status, headers=headers)


def count(text: str) -> int:
    return len(ENCODING.encode(text, disallowed_special=()))


def prompt_tokens(body: dict[str, Any]) -> int:
    """Three tokens a message, three to prime the reply, plus what the parts hold."""
    total = 3
    for message in body["messages"]:
        total += 3 + count(str(message.get("role", "")))
        total += count(message_text(message))
        if message.get("tool_calls"):
            total += count(json.dumps(message["tool_calls"], ensure_ascii=False))
    if body.get("tools"):
        total += count(json.dumps(body["tools"], ensure_ascii=False))
    return total


def message_text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(p.get("text", "") for p in content if isinstance(p, dict))
    return content or ""


def is_reasoning(model: str) -> bool:
    return bool(re.match(r"(gpt-5|o[134])", model))


def invalid(body: Any) -> Response | None:
    """The checks a real provider makes before it works, or None where all is well."""
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        return error(400, "'messages' is a required list", kind="invalid_request_error")
    if not body["messages"]:
        return error(400, "'messages' must not be empty", kind="invalid_request_error")
    if not isinstance(body.get("model"), str):
        return error(400, "'model' is required", kind="invalid_request_error")
    if body["model"] == "no-such-model":
        return error(404, "The model does not exist", code="model_not_found")
    if is_reasoning(body["model"]):
        if body.get("temperature") not in (None, 1):
            return error(400, "Unsupported value: 'temperature'", kind="invalid_request_error")
        if "max_tokens" in body:
            return error(
                400,
                "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
                kind="invalid_request_error",
            )
    limit = body.get("max_tokens", body.get("max_completion_tokens"))
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        return error(400, "max_tokens must be at least 1", kind="invalid_request_error")
    if body.get("response_format", {}).get("type") not in (
        None,
        "text",
        "json_object",
        "json_schema",
    ):
        return error(400, "Invalid value: 'response_format'", kind="invalid_request_error")
    return None


def instance(schema: dict[str, Any]) -> Any:
    """The smallest value that satisfies the common part of JSON Schema."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {k: instance(v) for k, v in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance(schema.get("items", {"type": "string"}))]
    return {"string": "stone", "integer": 1, "number": 1.5, "boolean": True, "null": None}[kind]


def wanted_tool(body: dict[str, Any]) -> dict[str, Any] | None:
    """The function to call, or None for a text reply."""
    tools = body.get("tools") or []
    choice = body.get("tool_choice", "auto")
    last = body["messages"][-1]
    if not tools or choice == "none" or last.get("role") == "tool":
        return None
    if isinstance(choice, dict):
        name = choice["function"]["name"]
        return next(t["function"] for t in tools if t["function"]["name"] == name)
    if choice == "required" or "[[tool]]" in message_text(last):
        return tools[0]["function"]
    return None


def reply_tokens(body: dict[str, Any], index: int) -> tuple[list[str], str]:
    """The reply as a list of tokens, and its finish reason; stop and max_tokens applied."""
    text = reply_text(body, index)
    finish = "stop"
    stops = body.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0]
    tokens = [ENCODING.decode([t]) for t in ENCODING.encode(text)]
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    if limit is not None and len(tokens) > limit:
        tokens, finish = tokens[:limit], "length"
    return tokens, finish


def reply_text(body: dict[str, Any], index: int) -> str:
    form = body.get("response_format") or {}
    if form.get("type") == "json_schema":
        return json.dumps(instance(form["json_schema"]["schema"]))
    if form.get("type") == "json_object":
        return json.dumps({"answer": "stone"})
    last = body["messages"][-1]
    if last.get("role") == "tool":
        return f"The tool said: {message_text(last)}"
    asked = re.search(r"\[\[words=(\d+)\]\]", message_text(last))
    length = int(asked.group(1)) if asked else 12
    key = json.dumps([body["messages"], body.get("seed"), index, body["model"]])
    rng = random.Random(key)
    return f"{body['model']}: " + " ".join(rng.choice(WORDS) for _ in range(length))


@dataclass
class Reply:
    """One choice, as the deltas in which it is sent; each delta is one token."""

    deltas: list[dict[str, Any]]
    finish: str
    text: str = ""
    tool_calls: list[dict[str, Any]] | None = None


def build_reply(body: dict[str, Any], index: int) -> Reply:
    if function := wanted_tool(body):
        arguments = json.dumps(instance(function.get("parameters", {"type": "object"})))
        call = {
            "id": f"call_{uuid.uuid4().hex[:8]}",
            "type": "function",
            "function": {"name": function["name"], "arguments": arguments},
        }
        first = {**call, "index": 0, "function": {"name": function["name"], "arguments": ""}}
        deltas: list[dict[str, Any]] = [{"tool_calls": [first]}]
        pieces = [ENCODING.decode([t]) for t in ENCODING.encode(arguments)]
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": p}}]} for p in pieces]
        return Reply(deltas, "tool_calls", tool_calls=[call])
    tokens, finish = reply_tokens(body, index)
    return Reply([{"content": t} for t in tokens], finish, "".join(tokens))


def logprobs_for(delta: dict[str, Any], body: dict[str, Any]) -> dict[str, Any] | None:
    if not body.get("logprobs") or "content" not in delta:
        return None
    token = delta["content"]
    entry: dict[str, Any] = {"token": token, "logprob": -0.25, "bytes": list(token.encode())}
    top = [dict(entry)] * int(body.get("top_logprobs") or 0)
    return {"content": [{**entry, "top_logprobs": top}], "refusal": None}


def usage(entry: Entry) -> dict[str, Any] | None:
    """What the client is told, which is the truth unless the fault says otherwise."""
    prompt, output = entry.prompt_tokens, entry.output_tokens
    if entry.fault == "usage_missing":
        return None
    if entry.fault == "usage_zero":
        prompt = output = 0
    if entry.fault == "usage_huge":
        prompt, output = 10**9, 10**9
    if entry.fault == "usage_negative":
        prompt, output = -prompt, -output
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": entry.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def chat(request: Request) -> Response:
    try:
        body = await request.json()
    except json.JSONDecodeError:
        return error(400, "not valid JSON", kind="invalid_request_error")
    if refused := invalid(body):
        return refused
    text = message_text(body["messages"][-1])
    fault = PROVIDER.next_fault(body["model"], text)
    kept = body if PROVIDER.keep_requests else {}
    entry = Entry(f"chatcmpl-{uuid.uuid4().hex[:12]}", body["model"], fault, request=kept)
    if PROVIDER.keep_books:
        PROVIDER.books.append(entry)
    if fault == "hang":
        await asyncio.sleep(PROVIDER.hang_s)
        fault = "500"
    if fault in ("400", "401", "429", "500", "503"):
        entry.status = int(fault)
        return error(entry.status, f"injected {fault}", code="injected")
    if fault == "no_stream" and body.get("stream"):
        entry.status = 400
        return error(400, "Your organization must be verified to stream this model.")
    entry.prompt_tokens = prompt_tokens(body)
    if cached := re.search(r"\[\[cached=(\d+)\]\]", text):
        entry.cached_tokens = min(int(cached.group(1)), entry.prompt_tokens)
    replies = [build_reply(body, i) for i in range(int(body.get("n") or 1))]
    if body.get("stream"):
        events = stream_events(body, entry, replies)
        return StreamingResponse(events, media_type="text/event-stream")
    return await whole_response(body, entry, replies)


async def whole_response(body: dict[str, Any], entry: Entry, replies: list[Reply]) -> Response:
    await asyncio.sleep(PROVIDER.token_delay_s * max(len(r.deltas) for r in replies))
    if entry.fault in ("invalid_json", "cut", "early_eof"):
        return Response('{"id": "x", "choices": [', media_type="application/json")
    entry.output_tokens = sum(len(r.deltas) for r in replies)
    entry.finished = True
    choices = []
    for i, reply in enumerate(replies):
        message = {"role": "assistant", "content": reply.text or None, "refusal": None}
        if reply.tool_calls:
            message["tool_calls"] = reply.tool_calls
        contents = [logprobs_for(d, body) for d in reply.deltas]
        found = [c for part in contents if part for c in part["content"]]
        choices.append(
            {
                "index": i,
                "message": message,
                "finish_reason": reply.finish,
                "logprobs": {"content": found, "refusal": None} if found else None,
            }
        )
    return JSONResponse(
        envelope(body, entry, "chat.completion") | {"choices": choices, "usage": usage(entry)}
    )


def envelope(body: dict[str, Any], entry: Entry, kind: str) -> dict[str, Any]:
    return {
        "id": entry.id,
        "object": kind,
        "created": int(time.time()),
        "model": body["model"],
        "system_fingerprint": "fp_fake",
    }


async def stream_events(
    body: dict[str, Any], entry: Entry, replies: list[Reply]
) -> AsyncIterator[bytes]:
    base = envelope(body, entry, "chat.completion.chunk")

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + json.dumps(base | {"choices": choices} | more).encode() + b"\n\n"

    delay = PROVIDER.drip_s if entry.fault == "drip" else PROVIDER.token_delay_s
    for i, reply in enumerate(replies):
        yield event([{"index": i, "delta": {"role": "assistant", "content": ""}}])
        for number, delta in enumerate(reply.deltas):
            if entry.fault in ("cut", "invalid_json", "early_eof") and number == CUT_AFTER:
                if entry.fault == "invalid_json":
                    yield b'data: {"choices": [{"delta": {"conte\n\n'
                if entry.fault == "cut":
                    raise ConnectionResetError("injected: the stream is cut")
                return
            if delay:
                await asyncio.sleep(delay)
            entry.output_tokens += 1
            choice = {"index": i, "delta": delta, "finish_reason": None}
            if probs := logprobs_for(delta, body):
                choice["logprobs"] = probs
            yield event([choice])
        yield event([{"index": i, "delta": {}, "finish_reason": reply.finish}])
    if (body.get("stream_options") or {}).get("include_usage"):
        yield event([], usage=usage(entry))
    entry.finished = True
    yield b"data: [DONE]\n\n"


async def responses(request: Request) -> Response:
    """The Responses API, text only and streamed: the sole way to some models (o3-pro)."""
    body = await request.json()
    text = body["input"] if isinstance(body["input"], str) else response_input(body["input"])
    chat = {"model": body["model"], "messages": [{"role": "user", "content": text}]}
    entry = Entry(f"resp_{uuid.uuid4().hex[:12]}", body["model"], "ok", request=body)
    entry.prompt_tokens = prompt_tokens(chat)
    PROVIDER.books.append(entry)
    return StreamingResponse(
        response_events(entry, build_reply(chat, 0)), media_type="text/event-stream"
    )


def response_input(items: list[dict[str, Any]]) -> str:
    return "".join(message_text(item) for item in items if item.get("role") == "user")


async def response_events(entry: Entry, reply: Reply) -> AsyncIterator[bytes]:
    whole: dict[str, Any] = {
        "id": entry.id,
        "object": "response",
        "created_at": int(time.time()),
        "model": entry.model,
        "status": "in_progress",
        "output": [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    number = 0

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal number
        data = {"type": kind, "sequence_number": number, **fields}
        number += 1
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()

    place: dict[str, Any] = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": reply.text, "annotations": []}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
    yield event("response.created", response=whole)
    yield event("response.output_item.added", output_index=0, item={**item, "content": []})
    for delta in reply.deltas:
        entry.output_tokens += 1
        yield event("response.output_text.delta", **place, delta=delta["content"])
    yield event("response.output_text.done", **place, text=reply.text)
    item["content"] = [part]  # type: ignore[assignment]
    yield event("response.output_item.done", output_index=0, item=item)
    used = {
        "input_tokens": entry.prompt_tokens,
        "output_tokens": entry.output_tokens,
        "total_tokens": entry.prompt_tokens + entry.output_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    entry.finished = True
    done = {**whole, "status": "completed", "output": [item], "usage": used}
    yield event("response.completed", response=done)


async def models(request: Request) -> Response:
    names = ("gpt-5-mini", "gpt-4.1-nano", "gpt-4o")
    rows = [{"id": n, "object": "model", "created": 0, "owned_by": "fake"} for n in names]
    if wanted := request.path_params.get("model"):
        found = [r for r in rows if r["id"] == wanted]
        return JSONResponse(found[0]) if found else error(404, f"no model {wanted}")
    return JSONResponse({"object": "list", "data": rows})


async def control(request: Request) -> Response:
    body = await request.json()
    if body.get("reset"):
        PROVIDER.reset(int(body.get("seed", 0)))
    for model, queue in body.get("faults", {}).items():
        PROVIDER.queues[model].extend(queue)
    for name in ("rate", "token_delay_s", "drip_s", "hang_s", "keep_requests", "keep_books"):
        if name in body:
            setattr(PROVIDER, name, body[name])
    if "kinds" in body:
        PROVIDER.kinds = tuple(body["kinds"])
    return JSONResponse({"ok": True})


async def books(request: Request) -> Response:
    return JSONResponse([asdict(e) for e in PROVIDER.books])


def build_app() -> Starlette:
    prefixes = ("", "/v1")
    routes = [Route("/control", control, methods=["POST"]), Route("/books", books)]
    for prefix in prefixes:
        routes += [
            Route(f"{prefix}/chat/completions", chat, methods=["POST"]),
            Route(f"{prefix}/responses", responses, methods=["POST"]),
            Route(f"{prefix}/models", models),
            Route(f"{prefix}/models/{{model}}", models),
        ]
    return Starlette(routes=routes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--token-delay", type=float, default=0.0)
    args = parser.parse_args()
    PROVIDER.reset(args.seed)
    PROVIDER.rate = args.rate
    PROVIDER.token_delay_s = args.token_delay
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.run(
            build_app(),
            host="127.0.0.1",
            port=args.port,
            log_level="critical",
            timeout_graceful_shutdown=1,
            backlog=4096,
        )


if __name__ == "__main__":
    main()
