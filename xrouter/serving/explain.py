"""What the router would do with a request, without calling a model."""

from __future__ import annotations

import asyncio

from xrouter.catalog import ModelSpec
from xrouter.episode import Decision, State
from xrouter.metering import lost_costs
from xrouter.providers.keys import redact
from xrouter.serving.accounts import Charge, Key
from xrouter.serving.exchange import Exchange, Services
from xrouter.serving.metadata import BYTES_PER_TOKEN
from xrouter.serving.openai_api import JSON, ApiError
from xrouter.serving.plan import Plan
from xrouter.tools import ModelCall, ToolError, resolve


async def explain(plan: Plan, services: Services, key: Key | None) -> JSON:
    """The first decision of the plan's policy, and what its calls are expected to cost.

    No model of the pool is paid. A router in this process decides for free; one that a provider
    is paid for is billed.
    """
    pool = services.catalog.select(plan.task.pool)
    state = State(plan.task.public(), pool, plan.mode, plan.limits.max_turns, (), plan.cost_weight)
    paid = getattr(plan.policy, "most_usd", None) is not None
    exchange = Exchange(services, plan, key)
    if paid:
        await exchange.admit()
    made: Decision | None = None
    with lost_costs() as lost:
        try:
            async with asyncio.timeout(plan.limits.episode_timeout_s):
                made = await plan.policy.decide(state)
        except TimeoutError:
            raise ApiError(408, "the router did not decide in time", kind="timeout_error") from None
        finally:
            if paid:
                cost = sum(lost, made.cost_usd if made else 0.0)
                outcome = "answered" if made else "failed"
                await exchange.settle(outcome, "explain", [Charge("router", cost)])
    prompt_tokens = plan.prompt_bytes // BYTES_PER_TOKEN
    calls = [_call_row(spec, wanted, prompt_tokens) for spec, wanted in _calls(made, pool)]
    return {
        "object": "router.explanation",
        "model": plan.model,
        "policy": plan.policy.name,
        "world": services.fleet.world,
        "mode": plan.mode,
        "cost_weight": plan.cost_weight,
        "pool": [spec.id for spec in pool],
        "decision": {
            "would_answer_directly": not made.tool_calls and bool(made.content),
            "content": made.content,
            "tool_calls": [
                {"name": c.name, "arguments": dict(c.arguments)} for c in made.tool_calls
            ],
            "parse_errors": [redact(e) for e in made.parse_errors],
        },
        "would_call": calls,
        "expected_cost": sum(row["expected_cost"] for row in calls),
        "router_cost": made.cost_usd,
        "billed": paid,
    }


def _calls(made: Decision, pool: tuple[ModelSpec, ...]) -> list[tuple[ModelSpec, ModelCall]]:
    specs = {spec.id: spec for spec in pool}
    found = []
    for call in made.tool_calls:
        try:
            wanted = resolve(call, pool, ())
        except ToolError:
            continue
        if isinstance(wanted, ModelCall):
            found.append((specs[wanted.model], wanted))
    return found


def _call_row(spec: ModelSpec, wanted: ModelCall, prompt_tokens: int) -> JSON:
    return {
        "model": spec.id,
        "tier": spec.tier,
        "system_prompt": wanted.system_prompt,
        "temperature": wanted.temperature,
        "expected_cost": spec.typical_cost(prompt_tokens),
    }
