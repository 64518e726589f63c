"""Real models through LiteLLM: retries and cooldowns by its Router, failover by tier here.

One call may take several attempts. Each is kept with what it consumed, because a stream that
breaks off after a thousand tokens is billed by its provider all the same.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from xrouter.catalog import TIERS, Catalog, ModelSpec
from xrouter.episode import Attempt, Completion, Message, World
from xrouter.metering import report_lost
from xrouter.orchestrator import Delta, FleetRequest
from xrouter.providers.call import CallFailed, status_of, streamed_call
from xrouter.providers.keys import ProvidersConfig, api_key, restrict, usable_models
from xrouter.providers.library import litellm
from xrouter.providers.params import call_params, output_limit
from xrouter.providers.stream import ReplyBuilder, WholeReply
from xrouter.providers.tokens import count_text, upper_bound
from xrouter.providers.trim import fit_context
from xrouter.verifiers import final_answer

log = logging.getLogger(__name__)

CALLERS_FAULT = frozenset({400, 413, 422})
MIN_OUTPUT_TOKENS = 16
PROMPT_OPTIONS = ("tools", "functions", "response_format", "prediction")
_NO_STREAM = re.compile(r"verified to stream|stream\w* (is )?not supported", re.IGNORECASE)
CONTINUE = (
    "Your reply was cut off by a connection error. Continue exactly where it stopped, without "
    "repeating or announcing anything."
)


class LiveConfig(ProvidersConfig):
    """How live calls behave. Times in seconds.

    ``timeout_s`` is the wait for a reply to begin, ``idle_timeout_s`` the longest silence within
    one. ``retries`` are made by LiteLLM on the same model for server errors; rate limits and
    timeouts go straight to the next model of up to ``max_attempts``. A model is left alone for
    ``cooldown_s`` after more than ``allowed_fails`` failures within a minute.
    """

    timeout_s: float = Field(default=60.0, gt=0)
    idle_timeout_s: float = Field(default=60.0, gt=0)
    retries: int = Field(default=1, ge=0)
    max_attempts: int = Field(default=4, ge=1)
    allowed_fails: int = Field(default=5, ge=0)
    cooldown_s: float = Field(default=10.0, gt=0)


class NoModelsError(ValueError):
    """No model can be called; the message says which keys are missing."""


class LiveFleet:
    """The fleet of models whose providers have keys here.

    Raises :class:`NoModelsError` where there is none. The others are logged and left out of
    ``catalog``.
    """

    world: World = "live"

    def __init__(
        self,
        catalog: Catalog,
        config: LiveConfig | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config or LiveConfig()
        usable, left_out = usable_models(catalog, self.config.providers, environment)
        for model, reason in left_out.items():
            log.info("live fleet: %s is left out: %s", model, reason)
        if not usable:
            reasons = sorted(set(left_out.values()))
            raise NoModelsError(f"live fleet: no model can be called; {'; '.join(reasons)}")
        self.catalog = restrict(catalog, usable)
        self._router = _litellm_router(usable, self.config, environment)
        self._unstreamable: set[str] = set()

    async def complete(self, request: FleetRequest) -> Completion:
        """Call the model, and others of its tier should it fail.

        Never raises for a provider's failure. Cancellation raises, after what was consumed has
        been reported.
        """
        return await _Call(self, request).run()

    async def open_stream(self, model: str, messages: Sequence[Message], **params: Any) -> Any:
        """A LiteLLM stream of one reply, usage included.

        A provider that refuses to stream a model (OpenAI does for some, to organizations that are
        not verified) is asked for the whole reply, then and from then on.
        """
        common = {"model": model, "messages": list(messages), "_skip_mcp_handler": True, **params}
        if model not in self._unstreamable:
            usage = {"include_usage": True}
            try:
                return await self._router.acompletion(stream=True, stream_options=usage, **common)
            except Exception as error:
                if status_of(error) != 400 or not _NO_STREAM.search(str(error)):
                    raise
                log.warning("%s may not be streamed; whole replies from now on", model)
                self._unstreamable.add(model)
        return WholeReply(await self._router.acompletion(**common))

    async def warm_up(self) -> None:
        """Make LiteLLM load what it loads at its first call, which takes seconds; sends nothing."""
        model = next(iter(self.catalog.models))
        messages = [{"role": "user", "content": "hello"}]
        async for _ in await self.open_stream(model, messages, mock_response="hello"):
            pass

    def stand_ins(self, model: str, pool: Sequence[str]) -> list[str]:
        """Who may answer in place of ``model``: its own tier first, then the tiers around it,
        each by how close the price is."""
        spec = self.catalog[model]
        others = [self.catalog[m] for m in pool if m != model and m in self.catalog]
        return [s.id for s in sorted(others, key=lambda s: _distance(spec, s))]


def _distance(wanted: ModelSpec, other: ModelSpec) -> tuple[int, float]:
    steps = 0 if set(wanted.tiers) & set(other.tiers) else 1
    if steps:
        steps += abs(TIERS.index(wanted.tier) - TIERS.index(other.tier))
    return steps, abs(wanted.typical_cost() - other.typical_cost())


def _litellm_router(
    models: Sequence[ModelSpec], config: LiveConfig, environment: Mapping[str, str] | None
) -> Any:
    deployments = []
    for spec in models:
        provider = config.providers[spec.provider]
        params: dict[str, Any] = {
            "model": spec.litellm_id or spec.id,
            "api_key": api_key(provider, environment),
            "max_retries": 0,
        }
        if provider.api_base:
            params["api_base"] = provider.api_base
        deployments.append(
            {"model_name": spec.id, "litellm_params": params, "model_info": {"id": spec.id}}
        )
    return litellm().Router(
        model_list=deployments,
        num_retries=config.retries,
        retry_policy={"RateLimitErrorRetries": 0, "TimeoutErrorRetries": 0},
        timeout=config.timeout_s,
        stream_timeout=config.timeout_s,
        allowed_fails=config.allowed_fails,
        cooldown_time=config.cooldown_s,
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How one attempt ended. ``status`` is the HTTP status of a failure, if it had one."""

    attempt: Attempt
    status: int | None = None
    cut: bool = False

    @property
    def may_go_on(self) -> bool:
        return self.status not in CALLERS_FAULT


@dataclass(slots=True)
class _Call:
    """Progress of one fleet request through its attempts.

    ``shown`` is text that the client has already received from attempts that broke off.
    """

    fleet: LiveFleet
    request: FleetRequest
    attempts: list[Attempt] = field(default_factory=list)
    shown: str = ""
    begun: bool = False
    reply: ReplyBuilder = field(default_factory=ReplyBuilder)
    started: float = field(default_factory=time.monotonic)

    async def run(self) -> Completion:
        try:
            outcome = await self._attempts()
        except BaseException:
            for attempt in self.attempts:
                report_lost(attempt.cost_usd)
            raise
        return self._completion(outcome)

    async def _attempts(self) -> _Outcome:
        """Try until one attempt succeeds, or nothing is left to try."""
        pool = self.request.task.pool or tuple(self.fleet.catalog.models)
        queue = [self.request.model, *self.fleet.stand_ins(self.request.model, pool)]
        repeated = False
        while True:
            model = queue.pop(0)
            outcome = await self._attempt(self.fleet.catalog[model])
            self.attempts.append(outcome.attempt)
            if outcome.attempt.error is None:
                return outcome
            log.warning("%s failed: %s", model, outcome.attempt.error)
            if outcome.cut and not repeated:
                repeated = True
                queue.insert(0, model)
            if self.request.on_delta is not None and self.reply.all_text:
                if not self._can_continue():
                    return outcome
                self.shown += self.reply.text
            full = len(self.attempts) >= self.fleet.config.max_attempts
            if full or not queue or not outcome.may_go_on:
                return outcome

    def _can_continue(self) -> bool:
        """Whether another attempt can take up the text that the client has seen."""
        options = self.request.options
        plain = not options.get("response_format") and not options.get("logprobs")
        return plain and (options.get("n") or 1) == 1 and not self.reply.tool_calls

    async def _attempt(self, spec: ModelSpec) -> _Outcome:
        self.reply = ReplyBuilder()
        options = self.request.options
        messages = fit_context(self._messages(), spec, options)
        tools = options.get("tools") or ()
        bound = self._output_bound(spec, messages)
        if bound is not None and bound < MIN_OUTPUT_TOKENS:
            return _Outcome(Attempt(spec.id, error="budget: the call does not fit"), 402)
        params = call_params(
            spec, options, temperature=self.request.temperature, max_output_tokens=bound
        )
        try:
            attempt = await streamed_call(
                self.fleet.open_stream(spec.id, messages, **params),
                self.reply,
                spec=spec,
                messages=messages,
                tools=tools,
                choices=int(options.get("n") or 1),
                idle_timeout_s=self.fleet.config.idle_timeout_s,
                on_delta=self._forward if self.request.on_delta else None,
            )
        except CallFailed as failure:
            return _Outcome(failure.attempt, failure.status, not self.reply.empty)
        return _Outcome(attempt)

    def _messages(self) -> list[Message]:
        messages = self.request.messages
        if not self.shown:
            return messages
        return [
            *messages,
            {"role": "assistant", "content": self.shown},
            {"role": "user", "content": CONTINUE},
        ]

    def _forward(self, delta: Delta) -> None:
        """Hand a delta to the client; a reply that is taken up again has no second role."""
        assert self.request.on_delta is not None
        begun, self.begun = self.begun, True
        if begun and "role" in delta["delta"] and len(self.attempts) > 0:
            delta = {**delta, "delta": {k: v for k, v in delta["delta"].items() if k != "role"}}
        self.request.on_delta(delta)

    def _output_bound(self, spec: ModelSpec, messages: Sequence[Message]) -> int | None:
        """Output tokens per choice that the allowance pays for, or None without one."""
        if self.request.max_cost_usd is None:
            return None
        left = self.request.max_cost_usd - sum(a.cost_usd for a in self.attempts)
        options = self.request.options
        in_prompt = [options[name] for name in PROMPT_OPTIONS if options.get(name)]
        left -= spec.cost(upper_bound(messages, in_prompt), 0)
        if left <= 0:
            return 0
        choices = int(options.get("n") or 1)
        price = spec.output_usd_per_million
        affordable = int(left / price * 1e6 / choices) if price else spec.max_output_tokens
        return min(affordable, spec.max_output_tokens)

    def _completion(self, last: _Outcome) -> Completion:
        text = self.shown + self.reply.text
        error = last.attempt.error
        choices = self._choices()
        return Completion(
            model=self.request.model,
            text=text if error is None else "",
            answer=final_answer(text) if error is None else None,
            input_tokens=sum(a.input_tokens for a in self.attempts),
            output_tokens=sum(a.output_tokens for a in self.attempts),
            cached_input_tokens=sum(a.cached_input_tokens for a in self.attempts),
            cost_usd=sum(a.cost_usd for a in self.attempts),
            latency_s=time.monotonic() - self.started,
            finish_reason=choices[0]["finish_reason"] if error is None and choices else "error",
            error=error,
            error_status=last.status,
            attempts=tuple(self.attempts),
            choices=tuple(choices) if error is None else (),
        )

    def _choices(self) -> list[dict[str, Any]]:
        """The reply's choices, with what was shown before and with finish reasons that LiteLLM
        lost (it keeps one where there are several choices)."""
        choices = self.reply.choices
        if self.shown and choices:
            choices[0]["message"]["content"] = self.shown + self.reply.text
        limit = output_limit(self.request.options, None)
        for choice in choices:
            if choice["finish_reason"] is None:
                text = choice["message"]["content"] or ""
                full = limit is not None and count_text(text) >= limit
                called = "tool_calls" if choice["message"].get("tool_calls") else "stop"
                choice["finish_reason"] = "length" if full else called
        return choices
