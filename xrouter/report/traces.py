"""Episodes for reading: what the router said, what came back, what it cost."""

from __future__ import annotations

import pandas as pd

from xrouter.episode import Completion, Episode, Turn
from xrouter.tools import format_tool_call


def spoken(turn: Turn) -> str:
    """What the router wrote in a turn, in Hermes notation."""
    calls = [format_tool_call(call) for call in turn.decision.tool_calls]
    return "\n".join(part for part in (turn.decision.content, *calls) if part)


def trace_table(episode: Episode, *, width: int = 60) -> pd.DataFrame:
    """One row per tool call. Columns: turn, tool, answer (cut to ``width``), agrees with (models
    that gave the same answer before or in the same turn), $ per 1k, seconds."""
    rows = []
    seen: list[Completion] = []
    for turn in episode.turns:
        seen += turn.completions
        for result in turn.results:
            done = result.completion
            agreeing = [
                c.model
                for c in seen
                if done and c is not done and c.answer is not None and c.answer == done.answer
            ]
            shown = "accepted" if done is None else done.answer or done.text
            rows.append(
                {
                    "turn": turn.index + 1,
                    "tool": result.call.name,
                    "answer": _cut(result.error or (done and done.error) or shown, width),
                    "agrees with": ", ".join(dict.fromkeys(agreeing)),
                    "$ per 1k": 1e3 * done.cost_usd if done else 0.0,
                    "seconds": done.latency_s if done else 0.0,
                }
            )
    columns = ["turn", "tool", "answer", "agrees with", "$ per 1k", "seconds"]
    return pd.DataFrame(rows, columns=columns)


def outcome_line(episode: Episode) -> str:
    """How an episode ended, in one line."""
    models = " then ".join(
        " + ".join(c.model for c in turn.completions) for turn in episode.turns if turn.completions
    )
    quality = "not judged" if episode.quality is None else f"quality {episode.quality:g}"
    return (
        f"{episode.stop_reason} ({episode.answer_source}); asked {models or 'nobody'}; {quality}; "
        f"${1e3 * episode.cost_usd:.3f} per 1,000 such requests, "
        f"of which the router ${1e3 * episode.router_cost_usd:.3f}"
    )


def _cut(text: str, width: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"
