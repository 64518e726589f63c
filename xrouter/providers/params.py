"""Client parameters in OpenAI terms -> parameters a given model accepts.

Only known parameters become arguments of LiteLLM: an unknown one might be one of its own
controls (``api_base``, ``mock_response``, …), and those are not the client's to set. Unknown
fields travel in ``extra_body``, to OpenAI-compatible providers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrouter.catalog import ModelSpec

KNOWN = frozenset(
    {
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "stop",
        "seed",
        "n",
        "logprobs",
        "top_logprobs",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "user",
        "reasoning_effort",
        "modalities",
        "audio",
        "prediction",
        "verbosity",
        "functions",
        "function_call",
        "safety_identifier",
        "prompt_cache_key",
        "web_search_options",
    }
)
REFUSED_BY_REASONING = frozenset(
    {
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "stop",
    }
)
OPENAI_COMPATIBLE = frozenset({"openai", "together", "vllm"})


def call_params(
    spec: ModelSpec,
    options: Mapping[str, Any],
    *,
    temperature: float | None = None,
    max_output_tokens: int | None = None,
) -> dict[str, Any]:
    """Arguments for one call of ``spec``.

    The client's own temperature beats the router's. ``max_output_tokens`` bounds the client's
    limit from above. OpenAI's reasoning models have a fixed temperature and want
    ``max_completion_tokens``; what they refuse is left out.
    """
    params = {k: v for k, v in options.items() if k in KNOWN and v is not None}
    unknown = {k: v for k, v in options.items() if k not in KNOWN}
    if temperature is not None:
        params.setdefault("temperature", temperature)
    limit = output_limit(options, max_output_tokens)
    params.pop("max_tokens", None)
    newer = params.pop("max_completion_tokens", None) is not None
    if limit is not None:
        reasoning = spec.provider == "openai" and spec.thinking
        name = "max_completion_tokens" if newer or reasoning else "max_tokens"
        params[name] = limit
    if spec.provider == "openai" and spec.thinking:
        params = {k: v for k, v in params.items() if k not in REFUSED_BY_REASONING}
    if unknown and spec.provider in OPENAI_COMPATIBLE:
        params["extra_body"] = unknown
    return params


def output_limit(options: Mapping[str, Any], bound: int | None) -> int | None:
    """Tokens one choice may have: the client's limit, the given bound, or the lower of both."""
    asked = options.get("max_completion_tokens") or options.get("max_tokens")
    limits = [value for value in (asked, bound) if value is not None]
    return min(limits) if limits else None
