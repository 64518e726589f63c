"""One call to one provider, with what it consumed, however it ended."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from xrouter.catalog import ModelSpec
from xrouter.episode import Attempt, Message
from xrouter.metering import report_lost
from xrouter.orchestrator import Delta
from xrouter.providers.keys import redact
from xrouter.providers.stream import ReplyBuilder, read_stream
from xrouter.providers.usage import Usage, checked_usage, estimated_usage

_LITELLM_PREFIX = re.compile(r"^(litellm\.)?(\w+: )*(\w+Exception - )?(?=\S)")


class CallFailed(Exception):
    """A call that did not end well; ``attempt`` has its cost, ``status`` the HTTP status."""

    def __init__(self, attempt: Attempt, status: int | None) -> None:
        super().__init__(attempt.error)
        self.attempt = attempt
        self.status = status


async def streamed_call(
    opening: Awaitable[Any],
    reply: ReplyBuilder,
    *,
    spec: ModelSpec,
    messages: Sequence[Message],
    tools: Sequence[Any] = (),
    choices: int = 1,
    idle_timeout_s: float = 60.0,
    on_delta: Callable[[Delta], None] | None = None,
) -> Attempt:
    """Await a LiteLLM stream, read it into ``reply``, and bill it at ``spec``'s prices.

    Raises :class:`CallFailed` for whatever went wrong. When cancelled, reports what was consumed
    (see :mod:`xrouter.metering`) and raises on. A call costs nothing before its first chunk.
    """
    try:
        stream = await opening
        reported = await read_stream(
            stream, reply, idle_timeout_s=idle_timeout_s, choices=choices, on_delta=on_delta
        )
    except Exception as error:
        usage = _consumed(reply, messages, tools)
        raise CallFailed(billed(spec, usage, short_error(error)), status_of(error)) from error
    except BaseException:
        report_lost(billed(spec, _consumed(reply, messages, tools)).cost_usd)
        raise
    return billed(spec, checked_usage(reported, spec, messages, tools, reply.all_text, choices))


def billed(spec: ModelSpec, usage: Usage, error: str | None = None) -> Attempt:
    """An attempt at the catalog's prices."""
    return Attempt(
        spec.id,
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.output_tokens,
        spec.cost(usage.input_tokens, usage.output_tokens, usage.cached_input_tokens),
        error,
        usage.estimated,
    )


def short_error(error: Exception) -> str:
    """One line, without keys and without what LiteLLM adds around it."""
    first = (str(error).strip() or "no message").splitlines()[0]
    plain = _LITELLM_PREFIX.sub("", first)[:400]
    return redact(f"{type(error).__name__}: {plain}")


def _consumed(reply: ReplyBuilder, messages: Sequence[Message], tools: Sequence[Any]) -> Usage:
    return Usage() if reply.empty else estimated_usage(messages, tools, reply.all_text)


def status_of(error: Exception) -> int | None:
    """The HTTP status of a provider's error, where it had one."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None
