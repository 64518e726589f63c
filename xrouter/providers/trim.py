"""Making a conversation fit into a model's context window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xrouter.catalog import ModelSpec
from xrouter.episode import Message
from xrouter.providers.params import output_limit
from xrouter.providers.tokens import count_prompt, upper_bound

OUTPUT_SHARE = 0.5


def fit_context(
    messages: Sequence[Message], spec: ModelSpec, options: Mapping[str, Any]
) -> list[Message]:
    """The messages with the oldest exchanges left out, as many as the context window demands.

    System messages and the last exchange stay whatever they need: a request that is too long in
    itself is for the provider to refuse. An exchange is a user message with the replies and tool
    results that follow it, so no tool result loses its call.
    """
    tools = options.get("tools") or ()
    room = spec.context_window - _output_room(spec, options)
    if upper_bound(messages, tools) <= room:
        return list(messages)
    head, exchanges = _split(messages)
    fixed = count_prompt([*head, *exchanges[-1]], tools) if exchanges else 0
    kept = exchanges[-1:]
    for exchange in reversed(exchanges[:-1]):
        fixed += count_prompt(exchange)
        if fixed > room:
            break
        kept.insert(0, exchange)
    return [*head, *(message for exchange in kept for message in exchange)]


def _output_room(spec: ModelSpec, options: Mapping[str, Any]) -> int:
    """Tokens kept free for the reply: the client's limit, or twice the typical length."""
    wanted = output_limit(options, None) or 2 * spec.typical_output_tokens
    return min(wanted, spec.max_output_tokens, int(spec.context_window * OUTPUT_SHARE))


def _split(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """Leading system messages, and the exchanges after them."""
    start = 0
    while start < len(messages) and messages[start].get("role") in ("system", "developer"):
        start += 1
    exchanges: list[list[Message]] = []
    for message in messages[start:]:
        if message.get("role") == "user" or not exchanges:
            exchanges.append([])
        exchanges[-1].append(message)
    return list(messages[:start]), exchanges
