"""One admitted request from reservation to bill.

Whatever happens in between, the ledger is told what was consumed: the orchestrator reports every
cost the moment it is known, and the request is settled in a ``finally``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy.exc import OperationalError

from xrouter.catalog import Catalog
from xrouter.episode import Completion, Episode
from xrouter.orchestrator import Delta, Fleet, Orchestrator
from xrouter.providers.keys import redact
from xrouter.serving.accounts import AsyncLedger, Charge, Key, Opening, Refused
from xrouter.serving.config import ServeConfig
from xrouter.serving.metadata import answering_call, charges, router_metadata, strategy, usage
from xrouter.serving.metrics import Metrics
from xrouter.serving.openai_api import JSON, ApiError, text_choice
from xrouter.serving.plan import Plan, least_usd, with_budget

log = logging.getLogger(__name__)

GRACE_S = 60.0
SETTLE_PAUSES_S = (0.1, 0.5, 2.0, 5.0)


@dataclass(frozen=True)
class Services:
    """What every request needs. ``pools`` are the model ids of each profile."""

    config: ServeConfig
    catalog: Catalog
    pools: Mapping[str, tuple[str, ...]]
    fleet: Fleet
    ledger: AsyncLedger
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Result:
    """An answered request: the choices in wire form, and what goes with them."""

    choices: list[JSON]
    usage: JSON
    metadata: JSON


@dataclass
class Exchange:
    """One request. ``deltas`` carries (model id, delta) that a streaming client may already be
    shown; None ends it. Run :meth:`run` as a task; cancel it where the client has gone."""

    services: Services
    plan: Plan
    key: Key | None = None
    deltas: asyncio.Queue[tuple[str, Delta] | None] = field(default_factory=asyncio.Queue)
    costs: list[Charge] = field(default_factory=list)
    budget_usd: float | None = None

    async def admit(self) -> None:
        """Reserve the money. Raises :class:`ApiError` where the request may not start."""
        config, plan = self.services.config, self.plan
        reserve = min(plan.limits.budget_usd or config.max_cost_usd, config.max_cost_usd)
        opening = Opening(
            id=plan.id,
            model=plan.model,
            world=self.services.fleet.world,
            key_id=self.key.id if self.key else None,
            streamed=plan.streamed,
            reserve_usd=reserve,
            least_usd=least_usd(plan, self.services.catalog) if self.key else 0.0,
            lifetime_s=(plan.limits.episode_timeout_s or 0.0) + config.drain_s + GRACE_S,
        )
        ledger = self.services.ledger
        opened = asyncio.ensure_future(ledger.run(ledger.ledger.open, opening))
        try:
            self.budget_usd = await asyncio.shield(opened)
        except Refused as refused:
            raise refusal(refused) from None
        except asyncio.CancelledError:
            with suppress(Refused):
                await opened
                await self.settle("cancelled", "")
            raise

    async def run(self) -> Result:
        """Run the episode and settle it. Raises :class:`ApiError` where there is no answer."""
        state, how = "failed", ""
        episode: Episode | None = None
        with self.services.metrics.running():
            try:
                episode = await self._episode()
                how = strategy(episode, passed_through=self.plan.passed_through)
                state = "failed" if episode.answer_source == "none" else "answered"
            except asyncio.CancelledError:
                state = "cancelled"
                raise
            finally:
                lines = charges(episode) if episode else self.costs
                self.services.metrics.finished(self.plan.model, state, episode, lines)
                try:
                    total = await self.settle(state, how, lines)
                finally:
                    self.deltas.put_nowait(None)
        if episode.answer_source == "none":
            raise no_answer(episode, total)
        return self._result(episode, lines, total)

    async def _episode(self) -> Episode:
        plan = self.plan
        orchestrator = Orchestrator(
            self.services.fleet,
            mode=plan.mode,
            limits=with_budget(plan, self.budget_usd, self.services.catalog),
            on_cost=lambda who, usd: self.costs.append(Charge(who, usd)),
        )
        return await orchestrator.run(
            plan.task,
            plan.policy,
            cost_weight=plan.cost_weight,
            options=plan.options,
            on_delta=self._show if plan.streamed else None,
        )

    def _show(self, model: str, delta: Delta) -> None:
        self.deltas.put_nowait((model, delta))

    async def settle(self, state: str, how: str, lines: Sequence[Charge] = ()) -> float:
        """Bill the request. A database that is away for a moment is waited for; a bill that
        cannot be written is logged whole, and the client still gets its answer."""
        ledger = self.services.ledger
        bill = partial(ledger.ledger.settle, self.plan.id, list(lines), state=state, strategy=how)
        for pause in SETTLE_PAUSES_S:
            try:
                return await ledger.run(bill)
            except OperationalError:
                await asyncio.sleep(pause)
        log.critical("request %s could not be billed: %s %s", self.plan.id, state, lines)
        return sum(line.cost_usd for line in lines)

    def _result(self, episode: Episode, lines: Sequence[Charge], total: float) -> Result:
        call = answering_call(episode)
        metadata = router_metadata(
            episode,
            catalog=self.services.catalog,
            total_usd=total,
            prompt_bytes=self.plan.prompt_bytes,
            best_single=self.services.config.best_single,
            passed_through=self.plan.passed_through,
        )
        cached = sum(c.cached_input_tokens for c in episode.calls)
        return Result(wire_choices(episode, call), usage(lines, cached), metadata)


def wire_choices(episode: Episode, call: Completion | None) -> list[JSON]:
    """The provider's choices where a model's reply is returned as it is, else one of text."""
    if call is not None and call.choices:
        return [dict(c) for c in call.choices]
    finish = call.finish_reason if call is not None else "stop"
    return [text_choice(episode.answer, finish)]


def refusal(refused: Refused) -> ApiError:
    """A ledger's refusal as an HTTP error: 402 for good, 429 where waiting helps."""
    wait = refused.retry_after_s
    if wait is None:
        return ApiError(402, str(refused), kind="insufficient_quota", code=refused.code)
    return ApiError(
        429,
        f"{refused}; try again in {wait:.0f} s",
        kind="rate_limit_error",
        code=refused.code,
        headers={"retry-after": str(max(1, round(wait)))},
    )


def no_answer(episode: Episode, cost_usd: float) -> ApiError:
    """Why an episode has no answer, as the error that tells the client what to do."""
    headers = {"x-xrouter-cost": f"{cost_usd:.12f}".rstrip("0").rstrip(".")}
    failed = [c for c in episode.calls if not c.ok]
    detail = redact((failed[-1].error if failed else None) or episode.note or "no model answered")
    if episode.stop_reason == "deadline":
        return ApiError(
            408,
            "the request's time ran out before any model had answered",
            kind="timeout_error",
            code="deadline_exceeded",
            headers={**headers, "x-should-retry": "false"},
        )
    status = failed[-1].error_status if failed else None
    if status in (400, 413, 422):
        return ApiError(400, f"the model refused the request: {detail}", headers=headers)
    if episode.stop_reason == "budget" or status == 402 or "budget:" in " ".join(episode.errors):
        message = "no model call fits into what this request may cost; raise router.max_cost_usd"
        return ApiError(
            402, message, kind="insufficient_quota", code="max_cost_exceeded", headers=headers
        )
    if status == 429:
        headers["retry-after"] = "5"
        message = f"every model that may answer is rate-limited: {detail}"
        return ApiError(
            429, message, kind="rate_limit_error", code="upstream_rate_limit", headers=headers
        )
    message = f"no model could answer: {detail}"
    return ApiError(502, message, kind="api_error", code="upstream_error", headers=headers)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has settled."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
