"""The HTTP routes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from xrouter import __version__
from xrouter.orchestrator import Policy
from xrouter.serving.accounts import KEY_PREFIX, Key
from xrouter.serving.exchange import Exchange, Services
from xrouter.serving.explain import explain
from xrouter.serving.metrics import CONTENT_TYPE
from xrouter.serving.middleware import LocalHostOnly, RequestIds
from xrouter.serving.openai_api import (
    JSON,
    ApiError,
    ChatRequest,
    listing,
    model_card,
    parse_request,
)
from xrouter.serving.plan import Plan, make_plan
from xrouter.serving.replies import StreamedReply, WholeReply, error_response

log = logging.getLogger(__name__)

SWEEP_S = 30.0
BILLING_S = 15.0
BODY_SCHEMA: JSON = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ChatRequest"}}},
    }
}
ERRORS: dict[int | str, JSON] = {
    code: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
    for code, text in {
        400: "Bad request",
        401: "No valid key",
        402: "Budget spent",
        404: "Not found",
        408: "Deadline passed",
        413: "Too large",
        429: "Too many requests",
        502: "No model could answer",
        503: "Server busy or shutting down",
    }.items()
}


class Server:
    """The application's state: services, the router policy, and whether it is shutting down."""

    def __init__(self, services: Services, policy: Policy) -> None:
        self.services = services
        self.policy = policy
        self.started = int(time.time())
        self.draining = False

    async def key_of(self, request: Request) -> Key | None:
        """The caller's key. Raises :class:`ApiError` (401) for a bad one, or a missing one where
        keys are demanded."""
        secret = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if secret.startswith(KEY_PREFIX):
            ledger = self.services.ledger
            key = await ledger.run(ledger.ledger.find_key, secret)
            if key is not None:
                return key
        elif not self.services.config.keys_required:
            return None
        raise ApiError(
            401,
            "no valid API key; send Authorization: Bearer xr-…, made by: xrouter keys create",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )

    async def body_of(self, request: Request) -> ChatRequest:
        limit = int(self.services.config.max_body_mb * 1e6)
        size, parts = 0, []
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise ApiError(413, f"the body is larger than {limit / 1e6:g} MB")
            parts.append(part)
        return parse_request(b"".join(parts))

    async def chat(self, request: Request) -> Response:
        key = await self.key_of(request)
        body = await self.body_of(request)
        services = self.services
        plan = self.plan(body)
        if self.draining or services.metrics.busy >= services.config.max_concurrent:
            raise ApiError(
                503,
                "shutting down" if self.draining else "too many requests are running",
                kind="api_error",
                code="overloaded",
                headers={"retry-after": "2"},
            )
        exchange = Exchange(services, plan, key)
        await exchange.admit()
        return StreamedReply(exchange) if plan.streamed else WholeReply(exchange)

    async def explain(self, request: Request) -> JSON:
        key = await self.key_of(request)
        body = await self.body_of(request)
        return await explain(self.plan(body), self.services, key)

    def plan(self, body: ChatRequest) -> Plan:
        services = self.services
        return make_plan(
            body,
            self.policy,
            config=services.config,
            catalog=services.catalog,
            pools=services.pools,
        )

    def model_rows(self) -> list[JSON]:
        config, catalog = self.services.config, self.services.catalog
        rows = [
            model_card(
                name,
                self.started,
                "xrouter",
                kind="router",
                cost_weight=profile.cost_weight,
                mode=profile.mode,
            )
            for name, profile in config.profiles.items()
        ]
        return rows + [
            model_card(
                spec.id,
                self.started,
                spec.provider or "xrouter",
                kind="model",
                tier=spec.tier,
                context_window=spec.context_window,
                input_usd_per_million=spec.input_usd_per_million,
                output_usd_per_million=spec.output_usd_per_million,
            )
            for spec in catalog
            if spec.id not in config.profiles
        ]

    def status(self) -> JSON:
        services = self.services
        return {
            "name": "xrouter",
            "version": __version__,
            "status": "draining" if self.draining else "ready",
            "world": services.fleet.world,
            "policy": self.policy.name,
            "models": len(services.catalog),
            "price_date": services.catalog.price_date,
            "keys_required": services.config.keys_required,
            "uptime_s": int(time.time()) - self.started,
            "api": "/v1/chat/completions",
        }


def build_app(services: Services, policy: Policy) -> FastAPI:
    """The ASGI application. Its ``state.server`` is the :class:`Server`."""
    server = Server(services, policy)
    app = FastAPI(
        title="xrouter",
        version=__version__,
        lifespan=_lifespan,
        description="An OpenAI-compatible API that decides, per request, which models to call.",
    )
    app.state.server = server
    _add_middleware(app, services)
    _add_error_handlers(app)
    _add_routes(app, server)
    _describe_body(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.server.services
    ledger = services.ledger

    async def sweep() -> None:
        while True:
            await ledger.run(ledger.ledger.close_lost)
            await asyncio.sleep(SWEEP_S)

    if warm_up := getattr(services.fleet, "warm_up", None):
        await warm_up()
    sweeper = asyncio.create_task(sweep())
    yield
    await services.metrics.wait_until_idle(BILLING_S)  # uvicorn does not wait for what it cancels
    sweeper.cancel()
    with suppress(asyncio.CancelledError):
        await sweeper
    ledger.close()


def _add_middleware(app: FastAPI, services: Services) -> None:
    if not services.config.keys_required:
        app.add_middleware(LocalHostOnly)
    app.add_middleware(RequestIds, metrics=services.metrics)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_request: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(OperationalError)
    async def no_ledger(_request: Request, error: OperationalError) -> JSONResponse:
        log.error("the ledger's database cannot be reached: %s", type(error.orig).__name__)
        away = ApiError(
            503, "the ledger cannot be reached", kind="api_error", headers={"retry-after": "2"}
        )
        return error_response(away)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        found = ApiError(error.status_code, message, headers=error.headers)
        return error_response(found)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        return error_response(ApiError(400, f"{path}: {first['msg']}", param=path))


def _add_routes(app: FastAPI, server: Server) -> None:
    @app.post("/v1/chat/completions", responses=ERRORS, openapi_extra=BODY_SCHEMA)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation; ``stream: true`` for server-sent events."""
        return await server.chat(request)

    @app.post("/v1/router/explain", responses=ERRORS, openapi_extra=BODY_SCHEMA)
    async def router_explain(request: Request) -> JSON:
        """What the router would do first, without calling or paying any model."""
        return await server.explain(request)

    @app.get("/v1/models", responses={401: ERRORS[401]})
    async def models(request: Request) -> JSON:
        """The router's names, and each model of the pool for pass-through."""
        await server.key_of(request)
        return listing(server.model_rows())

    @app.get("/v1/models/{model_id:path}", responses={401: ERRORS[401], 404: ERRORS[404]})
    async def model(request: Request, model_id: str) -> JSON:
        """One of them."""
        await server.key_of(request)
        for row in server.model_rows():
            if row["id"] == model_id:
                return row
        raise ApiError(404, f"The model {model_id[:200]!r} does not exist", code="model_not_found")

    @app.get("/health/live")
    async def live() -> JSON:
        """The process runs."""
        return {"status": "live"}

    @app.get("/health/ready", responses={503: ERRORS[503]})
    async def ready() -> Response:
        """New requests are welcome."""
        state = {"status": "draining" if server.draining else "ready"}
        return JSONResponse(state, status_code=503 if server.draining else 200)

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """Prometheus metrics."""
        await server.key_of(request)
        return Response(server.services.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/")
    async def status() -> JSON:
        """What this server is."""
        return server.status()


def _describe_body(app: FastAPI) -> None:
    """Put the request's schema into the OpenAPI document; bodies are parsed by hand."""
    schema = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    parts: dict[str, Any] = schema.pop("$defs", {})
    document = app.openapi()
    components = document.setdefault("components", {}).setdefault("schemas", {})
    components.update({"ChatRequest": schema, **parts})
