"""Sending a reply, whole or as server-sent events, and noticing a client that has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from xrouter.orchestrator import Delta
from xrouter.serving.exchange import Exchange, Result, cancelled
from xrouter.serving.openai_api import (
    DONE,
    JSON,
    ApiError,
    Reply,
    choice_deltas,
    comment,
    event,
)

CLIENT_CLOSED_REQUEST = 499
STALLED_CLIENT_S = 120.0


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error.envelope(), status_code=error.status, headers=error.headers)


def result_headers(metadata: Mapping[str, Any]) -> dict[str, str]:
    cost = f"{metadata['total_cost']:.12f}".rstrip("0").rstrip(".")
    return {"x-xrouter-model": metadata["model_used"], "x-xrouter-cost": cost}


async def gone(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


class WholeReply(Response):
    """Runs an exchange and sends its reply as one JSON body; cancels it if the client leaves."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self.exchange.run())
        left = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await cancelled(work)
                response: Response = Response(status_code=CLIENT_CLOSED_REQUEST)
            else:
                response = self._response(work)
        finally:
            left.cancel()
            await cancelled(work)
        await response(scope, receive, send)

    def _response(self, work: asyncio.Task[Result]) -> Response:
        try:
            result = work.result()
        except ApiError as error:
            return error_response(error)
        plan = self.exchange.plan
        body = Reply(plan.id, plan.model).whole(result.choices, result.usage, result.metadata)
        return JSONResponse(body, headers=result_headers(result.metadata))


class StreamedReply(Response):
    """Runs an exchange and streams its reply.

    Headers are sent with the first token, or after ``keepalive_s`` without one; until then an
    error still has an HTTP status of its own. Afterwards comments keep the connection alive.
    """

    def __init__(self, exchange: Exchange) -> None:
        super().__init__()
        self.exchange = exchange
        self.keepalive_s = exchange.services.config.keepalive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = _Stream(self.exchange, send, self.keepalive_s)
        left = asyncio.create_task(gone(receive))
        work = asyncio.create_task(self.exchange.run())
        pump = asyncio.create_task(stream.pump(work))
        try:
            await asyncio.wait({pump, left}, return_when=asyncio.FIRST_COMPLETED)
            with suppress(TimeoutError):  # a client that stopped reading
                if pump.done() and (refusal := pump.result()) is not None:
                    await error_response(refusal)(scope, receive, send)
        finally:
            left.cancel()
            pump.cancel()
            await cancelled(work)
            await asyncio.gather(pump, return_exceptions=True)


class _Stream:
    """The state of one event stream."""

    def __init__(self, exchange: Exchange, send: Send, keepalive_s: float) -> None:
        self.exchange = exchange
        self.keepalive_s = keepalive_s
        self.reply = Reply(exchange.plan.id, exchange.plan.model)
        self.shown: dict[int, str] = {}
        self.started = False
        self._send = send

    async def pump(self, work: asyncio.Task[Result]) -> ApiError | None:
        """Send everything; returns the error that is still to be sent as a plain response."""
        while True:
            try:
                async with asyncio.timeout(self.keepalive_s):
                    item = await self.exchange.deltas.get()
            except TimeoutError:
                await self._start({})
                await self._write(comment("routing"))
                continue
            if item is None:
                break
            model, delta = item
            await self._start({"x-xrouter-model": model})
            await self._write(event(self._live(delta)))
        try:
            result = await work
            await self._start(result_headers(result.metadata))
            for data in self._rest(result):
                await self._write(data)
        except ApiError as error:
            if not self.started:
                return error
            await self._write(event(error.envelope()))
        await self._write(DONE, last=True)
        return None

    def _live(self, delta: Delta) -> JSON:
        index = int(delta.get("index") or 0)
        content = dict(delta["delta"])
        if index not in self.shown:
            content = {"role": "assistant", "content": "", **content}
        self.shown[index] = self.shown.get(index, "") + (content.get("content") or "")
        more = {"logprobs": delta["logprobs"]} if delta.get("logprobs") else {}
        return self.reply.delta(index, content, **more)

    def _rest(self, result: Result) -> Iterator[bytes]:
        """What is left when the episode has ended: the answer unless it was streamed, finish
        reasons with the metadata, and usage where the client asked for it.

        Raises :class:`ApiError` when the answer is another than the one that was begun.
        """
        for choice in result.choices:
            index = int(choice["index"])
            if index not in self.shown:
                for wire in choice_deltas(choice):
                    yield event(self.reply.delta(index, wire["delta"]))
            elif self.shown[index] != (choice["message"].get("content") or ""):
                raise ApiError(
                    502,
                    "the reply broke off and could not be continued",
                    kind="api_error",
                    code="stream_broken",
                )
        for number, choice in enumerate(result.choices, 1):
            end = {"index": choice["index"], "delta": {}, "finish_reason": choice["finish_reason"]}
            last = {"router_metadata": result.metadata} if number == len(result.choices) else {}
            yield event(self.reply.chunk([end], **last))
        if self.exchange.plan.include_usage:
            yield event(self.reply.chunk([], usage=result.usage, router_metadata=result.metadata))

    async def _start(self, headers: Mapping[str, str]) -> None:
        if self.started:
            return
        self.started = True
        fixed = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
        }
        raw = [(k.encode(), v.encode()) for k, v in {**fixed, **headers}.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        """Send, and give up on a client that stopped reading."""
        message = {"type": "http.response.body", "body": data, "more_body": not last}
        with suppress(OSError):
            async with asyncio.timeout(STALLED_CLIENT_S):
                await self._send(message)
