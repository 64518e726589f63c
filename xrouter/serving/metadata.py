"""What a reply says of how it came about: the card's ``router_metadata``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xrouter.catalog import Catalog, ModelSpec
from xrouter.episode import Completion, Episode
from xrouter.serving.accounts import Charge

BYTES_PER_TOKEN = 4
REFERENCE_SCORE = "gpqa_diamond"
STRATEGIES = {
    "direct": "direct_response",
    "synthesis": "synthesis",
    "select": "select_response",
    "simple": "single_call",
    "fallback": "fallback",
    "none": "no_answer",
}


def answering_call(episode: Episode) -> Completion | None:
    """The call whose answer was returned word for word, or None."""
    if episode.answer_model is None:
        return None
    calls = [c for c in episode.calls if c.ok and c.model == episode.answer_model]
    return next((c for c in reversed(calls) if c.text == episode.answer), None)


def model_used(episode: Episode, call: Completion | None) -> str:
    """Who answered: the model that served the call, or the router itself."""
    if call is not None:
        return call.served_by
    return episode.answer_model or "router"


def strategy(episode: Episode, *, passed_through: bool = False) -> str:
    return "pass_through" if passed_through else STRATEGIES[episode.answer_source]


def charges(episode: Episode) -> list[Charge]:
    """The bill of a finished episode: one line per router turn and per attempt at a model."""
    lines: list[Charge] = []
    for turn in episode.turns:
        made = turn.decision
        if made.cost_usd or made.output_tokens:
            lines.append(Charge("router", made.cost_usd, made.input_tokens, made.output_tokens))
        for call in turn.completions:
            if not call.attempts:
                lines.append(
                    Charge(call.model, call.cost_usd, call.input_tokens, call.output_tokens)
                )
            for a in call.attempts:
                lines.append(
                    Charge(a.model, a.cost_usd, a.input_tokens, a.output_tokens, a.estimated)
                )
    return lines


def usage(lines: Sequence[Charge], cached_tokens: int = 0) -> dict[str, Any]:
    """OpenAI usage over everything that was billed, the router's own tokens included."""
    prompt = sum(line.input_tokens for line in lines)
    output = sum(line.output_tokens for line in lines)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


def call_history(episode: Episode) -> list[dict[str, Any]]:
    """Every model call in order."""
    return [
        {
            "turn": turn.index,
            "model": call.model,
            "served_by": call.served_by,
            "input_tokens": call.input_tokens,
            "output_tokens": call.output_tokens,
            "cost": call.cost_usd,
            "latency": round(call.latency_s, 4),
            "error": call.error,
            "attempts": max(1, len(call.attempts)),
            "estimated": any(a.estimated for a in call.attempts),
        }
        for turn in episode.turns
        for call in turn.completions
    ]


def router_metadata(
    episode: Episode,
    *,
    catalog: Catalog,
    total_usd: float,
    prompt_bytes: int,
    best_single: str | None = None,
    passed_through: bool = False,
) -> dict[str, Any]:
    """The metadata of one reply; money in USD, time in seconds.

    ``total_usd`` is what the ledger billed. ``saved_vs`` compares with estimates, see
    :func:`saved_vs`.
    """
    call = answering_call(episode)
    pool = [catalog[m] for m in episode.pool]
    router = episode.router_cost_usd
    return {
        "model_used": model_used(episode, call),
        "total_cost": total_usd,
        "router_cost": router,
        "target_models_cost": episode.models_cost_usd,
        "saved_vs": saved_vs(
            pool, catalog, call, episode.answer, prompt_bytes, total_usd, best_single
        ),
        "total_time": round(episode.wall_s, 4),
        "routing_strategy": strategy(episode, passed_through=passed_through),
        "stop_reason": episode.stop_reason,
        "call_history": call_history(episode),
        "turns_used": len(episode.turns),
        "world": episode.world,
        "policy": episode.policy,
        "mode": episode.mode,
        "cost_weight": episode.cost_weight,
        "price_date": catalog.price_date,
    }


def saved_vs(
    pool: Sequence[ModelSpec],
    catalog: Catalog,
    call: Completion | None,
    answer: str,
    prompt_bytes: int,
    total_usd: float,
    best_single: str | None,
) -> dict[str, Any]:
    """What one call of the dearest pool model, and of the best single one, would have cost.

    An estimate: the prompt as it is, and the answer's length scaled by how much the other model
    typically writes.
    """
    size = (prompt_bytes // BYTES_PER_TOKEN, len(answer.encode()) // BYTES_PER_TOKEN)
    typical = None
    if call is not None:
        served = catalog[call.served_by] if call.served_by in catalog else catalog[call.model]
        last = call.attempts[-1] if call.attempts else call
        size, typical = (last.input_tokens, last.output_tokens), served.typical_output_tokens

    def estimate(spec: ModelSpec) -> float:
        scale = spec.typical_output_tokens / typical if typical else 1.0
        return spec.cost(size[0], min(round(size[1] * scale), spec.max_output_tokens))

    references = {
        "most_expensive": max(pool, key=lambda s: (estimate(s), s.id)),
        "best_single": best_single_model(pool, best_single),
    }
    return {
        name: {
            "model": spec.id,
            "estimated_cost": estimate(spec),
            "saved": estimate(spec) - total_usd,
        }
        for name, spec in references.items()
    }


def best_single_model(pool: Sequence[ModelSpec], wanted: str | None) -> ModelSpec:
    """``wanted`` if it is in the pool; else the best published GPQA-Diamond score; models
    without one come last, dearer ones first."""
    for spec in pool:
        if spec.id == wanted:
            return spec
    return max(pool, key=lambda s: (s.scores.get(REFERENCE_SCORE, 0.0), s.typical_cost(), s.id))
