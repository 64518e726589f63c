"""What happens to every request: an id, a count, a size limit, a check of who is addressed."""

from __future__ import annotations

import logging
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xrouter.serving.metrics import Metrics
from xrouter.serving.openai_api import ApiError, request_id
from xrouter.serving.replies import error_response

log = logging.getLogger(__name__)

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class RequestIds:
    """Gives each response ``x-request-id`` (the client's, where it sent a sane one), counts it,
    and turns what nobody caught into an OpenAI error."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        ident = request_id(Headers(scope=scope).get("x-request-id"), f"req_{uuid.uuid4().hex}")
        started = False

        async def tagged(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = ident
                route = getattr(scope.get("route"), "path", "other")
                self.metrics.http.labels(route, str(message["status"])).inc()
            await send(message)

        try:
            await self.app(scope, receive, tagged)
        except Exception:
            log.exception("request %s failed", ident)
            if not started:
                error = ApiError(500, "internal error; see the server's log", kind="api_error")
                await error_response(error)(scope, receive, tagged)


class LocalHostOnly:
    """For a server without keys: answers only requests addressed to this machine by name, so that
    a web page cannot reach it through a name of its own (DNS rebinding)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_local(Headers(scope=scope).get("host", "")):
            error = ApiError(
                403,
                "this server runs without API keys and answers to localhost only; start it with "
                "require_keys: true to use another name",
                kind="permission_error",
            )
            await error_response(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _is_local(host: str) -> bool:
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name in LOCAL_NAMES or name.startswith("127.")
