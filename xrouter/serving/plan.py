"""From a request to a plan: which task, whose pool, how dear, how long. Nothing is spent here."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xrouter.catalog import Catalog
from xrouter.episode import Mode, State, Task
from xrouter.orchestrator import Limits, Policy
from xrouter.policies.backup import PassThrough
from xrouter.serving.config import ServeConfig
from xrouter.serving.openai_api import (
    ApiError,
    ChatRequest,
    RouterOptions,
    needs_verbatim,
    text_of,
)

SMALLEST_RESERVE_USD = 1e-5
DECISION_TOKENS = (4096, 512)


@dataclass(frozen=True, slots=True)
class Plan:
    """A request that is ready to run. ``streamed`` and ``include_usage`` are the client's wish;
    ``passed_through`` is set where a pool model was asked for by name."""

    id: str
    model: str
    task: Task
    policy: Policy
    mode: Mode
    cost_weight: float
    limits: Limits
    options: Mapping[str, Any] = field(default_factory=dict)
    streamed: bool = False
    include_usage: bool = False
    passed_through: bool = False

    @property
    def prompt_bytes(self) -> int:
        return sum(len(text_of(m).encode()) for m in self.task.messages)


def make_plan(
    request: ChatRequest,
    policy: Policy,
    *,
    config: ServeConfig,
    catalog: Catalog,
    pools: Mapping[str, tuple[str, ...]],
) -> Plan:
    """A plan for ``policy``; ``pools`` are the model ids of each profile. Raises
    :class:`ApiError` for an unknown model or pool."""
    ident = f"chatcmpl-{uuid.uuid4().hex}"
    dial = request.router or RouterOptions()  # type: ignore[call-arg]
    profile = config.profiles.get(request.model)
    if profile is None and request.model not in catalog:
        raise ApiError(
            404,
            f"The model {request.model!r} does not exist; GET /v1/models lists those that do.",
            code="model_not_found",
            param="model",
        )
    pool = _pool(dial, pools[request.model], catalog) if profile else (request.model,)
    mode: Mode = dial.mode or (profile.mode if profile else "simple")
    if profile is None or needs_verbatim(request):
        mode = "simple"
    weight = (
        dial.cost_weight if dial.cost_weight is not None else getattr(profile, "cost_weight", 0)
    )
    return Plan(
        id=ident,
        model=request.model,
        task=make_task(ident, request, pool),
        policy=policy if profile else PassThrough(request.model),
        mode=mode,
        cost_weight=float(weight),
        limits=_limits(dial, config),
        options=request.options(),
        streamed=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        passed_through=profile is None,
    )


def make_task(ident: str, request: ChatRequest, pool: Sequence[str]) -> Task:
    """The conversation as a task: what policies read is text; ``messages`` is what was sent."""
    messages = request.wire_messages()
    system = "\n\n".join(text_of(m) for m in messages if m["role"] in ("system", "developer"))
    spoken = [m for m in messages if m["role"] not in ("system", "developer")]
    last = max((i for i, m in enumerate(spoken) if m["role"] == "user"), default=len(spoken) - 1)
    history = tuple(_spoken(m) for i, m in enumerate(spoken) if i != last)
    return Task(
        id=ident,
        query=text_of(spoken[last]) if spoken else system,
        domain="chat",
        system=system or None,
        history=history,
        pool=tuple(pool),
        source="http",
        messages=tuple(messages),
    )


def _spoken(message: Mapping[str, Any]) -> dict[str, str]:
    """A message as plain text of the user or the assistant."""
    text = text_of(message)
    if message["role"] in ("tool", "function"):
        return {"role": "user", "content": f"[tool result] {text}"}
    names = [c.get("function", {}).get("name", "?") for c in message.get("tool_calls") or ()]
    if names:
        text = f"{text}\n[called {', '.join(map(str, names))}]".strip()
    return {"role": "assistant" if message["role"] == "assistant" else "user", "content": text}


def _pool(dial: RouterOptions, usual: tuple[str, ...], catalog: Catalog) -> tuple[str, ...]:
    if dial.pool is None:
        return usual
    try:
        named = (
            catalog.pool(dial.pool)
            if isinstance(dial.pool, str)
            else tuple(dict.fromkeys(dial.pool))
        )
    except ValueError as error:
        raise ApiError(400, f"router.pool: {error}", param="router.pool") from None
    if unknown := [m for m in named if m not in catalog]:
        raise ApiError(
            400,
            f"router.pool: not offered here: {', '.join(unknown)[:200]}; GET /v1/models lists "
            "what is",
            param="router.pool",
        )
    if not named:
        raise ApiError(400, "router.pool: give at least one model", param="router.pool")
    return named


def _limits(dial: RouterOptions, config: ServeConfig) -> Limits:
    timeout = min(dial.timeout_s or config.request_timeout_s, config.request_timeout_s)
    return Limits(
        max_turns=dial.max_turns or config.max_turns,
        max_calls_per_turn=config.max_calls_per_turn,
        call_timeout_s=config.call_timeout_s,
        episode_timeout_s=timeout,
        budget_usd=dial.max_cost_usd,
    )


def with_budget(plan: Plan, budget_usd: float | None, catalog: Catalog) -> Limits:
    """The plan's limits within a budget, with room kept for the router's own tokens."""
    budgets = [b for b in (plan.limits.budget_usd, budget_usd) if b is not None]
    if not budgets:
        return plan.limits
    return Limits(
        max_turns=plan.limits.max_turns,
        max_calls_per_turn=plan.limits.max_calls_per_turn,
        call_timeout_s=plan.limits.call_timeout_s,
        episode_timeout_s=plan.limits.episode_timeout_s,
        budget_usd=min(budgets),
        router_reserve_usd=decision_bound(plan, catalog),
    )


def decision_bound(plan: Plan, catalog: Catalog) -> float:
    """The most that one decision of the plan's policy can cost, in USD."""
    if plan.passed_through:
        return 0.0
    bound = getattr(plan.policy, "most_usd", None)
    if bound is None:
        return catalog.router_price.cost(*DECISION_TOKENS)
    pool = catalog.select(plan.task.pool)
    state = State(plan.task, pool, plan.mode, plan.limits.max_turns)
    return float(bound(state, plan.limits.max_calls_per_turn))


def least_usd(plan: Plan, catalog: Catalog) -> float:
    """What must be left of a budget for the request to be worth starting."""
    cheapest = min(catalog[m].typical_cost() for m in plan.task.pool)
    return max(SMALLEST_RESERVE_USD, cheapest + decision_bound(plan, catalog))
