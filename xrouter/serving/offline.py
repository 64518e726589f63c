"""Fleets of fixed outcomes behind the API: they honour a client's limits as a provider would."""

from __future__ import annotations

from dataclasses import replace

from xrouter.catalog import Catalog, ModelSpec
from xrouter.episode import Completion, World
from xrouter.orchestrator import Fleet, FleetRequest
from xrouter.providers.params import output_limit
from xrouter.serving.openai_api import text_choice

CHARS_PER_TOKEN = 4
MIN_OUTPUT_TOKENS = 1


class OfflineFleet:
    """A simulated or recorded fleet that gives as many choices as are asked for, and keeps within
    ``max_tokens`` and the call's allowance: longer replies are cut, and billed as cut."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.world: World = fleet.world
        self.catalog: Catalog = fleet.catalog

    async def complete(self, request: FleetRequest) -> Completion:
        count = int(request.options.get("n") or 1)
        if count == 1:
            return await self._one(request)
        share = None if request.max_cost_usd is None else request.max_cost_usd / count
        first = request.attempt * count
        done = [
            await self._one(replace(request, attempt=first + i, max_cost_usd=share))
            for i in range(count)
        ]
        return _together(done)

    async def _one(self, request: FleetRequest) -> Completion:
        done = await self.fleet.complete(request)
        limit = self._limit(request, done)
        if not done.ok or limit is None or done.output_tokens <= limit:
            return done
        if limit < MIN_OUTPUT_TOKENS:
            return Completion(
                done.model, "", error="budget: the call does not fit", error_status=402
            )
        spec = self.catalog[done.model]
        return replace(
            done,
            text=done.text[: limit * CHARS_PER_TOKEN],
            output_tokens=limit,
            cost_usd=spec.cost(done.input_tokens, limit, done.cached_input_tokens),
            finish_reason="length",
        )

    def _limit(self, request: FleetRequest, done: Completion) -> int | None:
        bound = None
        if request.max_cost_usd is not None:
            bound = _affordable(self.catalog[done.model], done, request.max_cost_usd)
        return output_limit(request.options, bound)


def _together(done: list[Completion]) -> Completion:
    """Several calls as one completion of several choices."""
    if failed := next((d for d in done if not d.ok), None):
        return failed
    return replace(
        done[0],
        input_tokens=sum(d.input_tokens for d in done),
        output_tokens=sum(d.output_tokens for d in done),
        cost_usd=sum(d.cost_usd for d in done),
        choices=tuple(
            text_choice(d.text, d.finish_reason) | {"index": i} for i, d in enumerate(done)
        ),
    )


def _affordable(spec: ModelSpec, done: Completion, usd: float) -> int:
    left = usd - spec.cost(done.input_tokens, 0, done.cached_input_tokens)
    if spec.output_usd_per_million == 0:
        return done.output_tokens
    return max(0, int(left / spec.output_usd_per_million * 1e6))
