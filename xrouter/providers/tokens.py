"""Counting tokens where the provider did not.

The tokenizer is OpenAI's ``cl100k_base``, the file of which LiteLLM carries. For other families
it is an estimate; :func:`upper_bound` is a bound for all of them, since a byte-level BPE token
covers at least one byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrouter.episode import Message
from xrouter.providers.library import encoding

MESSAGE_OVERHEAD = 3
REPLY_OVERHEAD = 3
TEMPLATE_ALLOWANCE = 256
IMAGE_ALLOWANCE = 8192
PIECE_CHARS = 4000
SAMPLE_CHARS = 400_000


def count_text(text: str) -> int:
    """Tokens of a text, in time linear in its length: long texts are counted in pieces (the
    tokenizer takes quadratic time for a long run of one letter), very long ones by a sample."""
    if len(text) > SAMPLE_CHARS:
        return round(count_text(text[:SAMPLE_CHARS]) * len(text) / SAMPLE_CHARS)
    pieces = (text[i : i + PIECE_CHARS] for i in range(0, len(text), PIECE_CHARS))
    return sum(len(encoding().encode(piece, disallowed_special=())) for piece in pieces)


def count_prompt(messages: Iterable[Message], tools: Sequence[Any] = ()) -> int:
    """Prompt tokens by OpenAI's published rule: three a message, three to prime the reply."""
    total = REPLY_OVERHEAD
    for message in messages:
        total += MESSAGE_OVERHEAD + count_text(str(message.get("role", "")))
        total += sum(count_text(text) for text in _texts(message))
    return total + (count_text(json.dumps(tools, ensure_ascii=False)) if tools else 0)


def upper_bound(messages: Iterable[Message], tools: Sequence[Any] = ()) -> int:
    """More tokens than this the prompt cannot have (images: a generous allowance each)."""
    messages = list(messages)
    extras = sum(16 + IMAGE_ALLOWANCE * count_images(message) for message in messages)
    return TEMPLATE_ALLOWANCE + extras + prompt_bytes(messages, tools)


def prompt_bytes(messages: Iterable[Message], tools: Sequence[Any] = ()) -> int:
    """UTF-8 bytes of all texts of the prompt."""
    total = sum(len(text.encode()) for message in messages for text in _texts(message))
    return total + (len(json.dumps(tools, ensure_ascii=False).encode()) if tools else 0)


def count_images(message: Message) -> int:
    """Content parts that are not text: images, audio, files."""
    content = message.get("content")
    if not isinstance(content, list):
        return 0
    return sum(isinstance(p, Mapping) and p.get("type") not in ("text", "refusal") for p in content)


def _texts(message: Message) -> Iterable[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                yield part["text"]
    if message.get("tool_calls"):
        yield json.dumps(message["tool_calls"], ensure_ascii=False)
