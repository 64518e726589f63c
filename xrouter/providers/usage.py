"""Provider usage, believed only where it is possible.

A bill is made from the provider's own token counts. Counts that are missing, negative, or that
the texts contradict by more than a factor of two are replaced by our own and marked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xrouter.catalog import ModelSpec
from xrouter.episode import Message
from xrouter.providers.tokens import (
    count_images,
    count_prompt,
    count_text,
    prompt_bytes,
    upper_bound,
)

log = logging.getLogger(__name__)

SUSPICIOUS_BYTES_PER_TOKEN = 12
TOLERANCE = 2.0
SLACK = 64


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call; cached ones are part of ``input_tokens``."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    estimated: bool = False


def estimated_usage(messages: Sequence[Message], tools: Sequence[Any], reply: str) -> Usage:
    """Our own count, for a call that broke off or whose usage cannot be believed."""
    return Usage(count_prompt(messages, tools), count_text(reply), 0, True)


def checked_usage(
    reported: Any,
    spec: ModelSpec,
    messages: Sequence[Message],
    tools: Sequence[Any],
    reply: str,
    choices: int = 1,
) -> Usage:
    """The provider's usage, or :func:`estimated_usage` where it is missing or impossible.

    ``reply`` is all visible output text; hidden reasoning may add to it up to the model's output
    limit for each of ``choices``.
    """
    usage = _read(reported)
    if usage is not None:
        problem = _prompt_problem(usage, messages, tools) or _reply_problem(
            usage, spec, reply, choices
        )
        if problem is None:
            return usage
        log.warning("%s: usage not believed: %s", spec.id, problem)
    return estimated_usage(messages, tools, reply)


def _read(reported: Any) -> Usage | None:
    """Usage from an OpenAI-shaped object, or None where it is no usage at all."""
    prompt = _count(getattr(reported, "prompt_tokens", None))
    output = _count(getattr(reported, "completion_tokens", None))
    details = getattr(reported, "prompt_tokens_details", None)
    cached = _count(getattr(details, "cached_tokens", None) or 0)
    if prompt is None or output is None or cached is None or cached > prompt:
        return None
    return Usage(prompt, output, cached)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _prompt_problem(usage: Usage, messages: Sequence[Message], tools: Sequence[Any]) -> str | None:
    bound = upper_bound(messages, tools)
    has_images = any(count_images(m) for m in messages)
    if usage.input_tokens > bound and not has_images:
        return f"{usage.input_tokens} prompt tokens for at most {bound}"
    if usage.input_tokens * SUSPICIOUS_BYTES_PER_TOKEN >= prompt_bytes(messages, tools):
        return None
    counted = count_prompt(messages, tools)
    if usage.input_tokens * TOLERANCE < counted:
        return f"{usage.input_tokens} prompt tokens where {counted} were counted"
    return None


def _reply_problem(usage: Usage, spec: ModelSpec, reply: str, choices: int) -> str | None:
    size = len(reply.encode())
    if usage.output_tokens > (spec.max_output_tokens + SLACK) * choices:
        return f"{usage.output_tokens} output tokens exceed the model's {spec.max_output_tokens}"
    if not spec.thinking and usage.output_tokens > size + SLACK * choices:
        return f"{usage.output_tokens} output tokens for {size} bytes"
    if usage.output_tokens * SUSPICIOUS_BYTES_PER_TOKEN < size:
        counted = count_text(reply)
        if usage.output_tokens * TOLERANCE < counted:
            return f"{usage.output_tokens} output tokens where {counted} were counted"
    return None
