"""The currency of the project: what a request is, what happened to it, what it cost.

Everything here is a frozen dataclass that survives a round trip through JSON. Training rolls
out episodes, evaluation scores them, serving returns them; there is no second vocabulary.

Units: money in USD, time in seconds, tokens as billed.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from xrouter.catalog import ModelSpec

Message = Mapping[str, Any]
Mode = Literal["agent", "simple"]
World = Literal["simulated", "recorded", "live"]
AnswerSource = Literal["direct", "synthesis", "select", "simple", "fallback", "none"]
StopReason = Literal[
    "answered",
    "selected",
    "simple",
    "turns_exhausted",
    "deadline",
    "budget",
    "policy_error",
    "empty",
]

DOMAINS = ("math", "code", "logic", "simulation", "table", "stem", "chat")


@dataclass(frozen=True, slots=True)
class Task:
    """One request, with what is needed to judge its answer.

    ``gold`` and ``verifier`` are for the verifier alone: policies are handed
    :meth:`public`, which has neither. ``difficulty`` is in [0, 1], 1 being hardest.

    ``messages``, where given, is the client's conversation as it was sent (images, tool results
    and all): called models receive it instead of ``system``, ``history`` and ``query``, which
    remain what the policy reads.
    """

    id: str
    query: str
    domain: str = "math"
    gold: str = ""
    verifier: str = "exact"
    system: str | None = None
    history: tuple[Message, ...] = ()
    pool: tuple[str, ...] = ()
    difficulty: float | None = None
    band: str = ""
    split: str = ""
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()

    def public(self) -> Task:
        """The task without anything that would give the answer away."""
        return dataclasses.replace(
            self, gold="", verifier="", difficulty=None, band="", metadata={}
        )

    def to_dict(self) -> dict[str, Any]:
        return _plain(self)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Task:
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(row) - known):
            raise ValueError(f"task {row.get('id')!r}: unknown fields {unknown}")
        data = dict(row)
        data["history"] = tuple(data.get("history") or ())
        data["pool"] = tuple(data.get("pool") or ())
        data["messages"] = tuple(data.get("messages") or ())
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request to one provider, for the bill: failed and cut-off ones count too.

    ``estimated`` is set where the provider's usage was missing or impossible and the tokens were
    counted here.
    """

    model: str
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    error: str | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """What one model returned for one call, and what it cost.

    ``answer`` is the final answer in normalised form, or None where none was found; two
    completions agree when their answers are equal strings.

    A live fleet may need several ``attempts``, the last of which may be another model; tokens
    and cost are their sums. ``choices`` are the provider's choices in wire form, for clients that
    want more than text (their own tools, several choices, log-probabilities). ``error_status`` is
    the HTTP status of a provider's error.
    """

    model: str
    text: str
    answer: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cost_usd: float = 0.0
    latency_s: float = 0.0
    finish_reason: str = "stop"
    error: str | None = None
    error_status: int | None = None
    attempts: tuple[Attempt, ...] = ()
    choices: tuple[Mapping[str, Any], ...] = ()

    @property
    def served_by(self) -> str:
        """The model that answered, which differs from ``model`` after a failover."""
        return self.attempts[-1].model if self.attempts else self.model

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as the router wrote it; ``arguments`` is parsed JSON."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """A tool call and what came of it: a completion, an error the policy is shown, or neither
    (an accepted ``select_response``)."""

    call: ToolCall
    completion: Completion | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """The router's own tokens of one turn, for training.

    ``prompt_ids`` is the whole context before the turn; ``response_ids`` and ``logprobs``
    (natural log, under the sampling policy at temperature 1) have equal length. ``choices``, of
    the same length or empty, tells which tokens guided decoding allowed at each position.
    """

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    choices: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says in one turn: text, tool calls, or both.

    ``parse_errors`` describes tool calls that could not be read; the orchestrator shows them to
    the policy as tool errors.
    """

    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    parse_errors: tuple[str, ...] = ()
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    trace: TokenTrace | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One router turn: the decision, and the results of its tool calls in order."""

    index: int
    decision: Decision
    results: tuple[ToolResult, ...] = ()
    latency_s: float = 0.0

    @property
    def completions(self) -> tuple[Completion, ...]:
        return tuple(r.completion for r in self.results if r.completion is not None)

    @property
    def router_cost_usd(self) -> float:
        return self.decision.cost_usd

    @property
    def models_cost_usd(self) -> float:
        return sum(c.cost_usd for c in self.completions)

    @property
    def cost_usd(self) -> float:
        return self.router_cost_usd + self.models_cost_usd


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished request: every turn, call, token and cent, the answer, and why it stopped."""

    task_id: str
    policy: str
    world: World
    mode: Mode
    pool: tuple[str, ...]
    turns: tuple[Turn, ...]
    answer: str
    answer_source: AnswerSource
    answer_model: str | None
    stop_reason: StopReason
    cost_weight: float = 0.0
    seed: int = 0
    wall_s: float = 0.0
    note: str = ""
    quality: float | None = None

    @property
    def calls(self) -> tuple[Completion, ...]:
        return tuple(c for t in self.turns for c in t.completions)

    @property
    def router_cost_usd(self) -> float:
        return sum(t.router_cost_usd for t in self.turns)

    @property
    def models_cost_usd(self) -> float:
        return sum(t.models_cost_usd for t in self.turns)

    @property
    def cost_usd(self) -> float:
        return self.router_cost_usd + self.models_cost_usd

    @property
    def errors(self) -> tuple[str, ...]:
        return tuple(
            e
            for t in self.turns
            for r in t.results
            for e in (r.error or (r.completion.error if r.completion else None),)
            if e
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict; the derived costs are included for readers of the file."""
        return _plain(self) | {
            "cost_usd": self.cost_usd,
            "router_cost_usd": self.router_cost_usd,
            "models_cost_usd": self.models_cost_usd,
        }


@dataclass(frozen=True, slots=True)
class State:
    """What a policy may look at when it decides. There is no gold answer in it."""

    task: Task
    pool: tuple[ModelSpec, ...]
    mode: Mode = "agent"
    max_turns: int = 3
    turns: tuple[Turn, ...] = ()
    cost_weight: float = 0.0
    seed: int = 0

    @property
    def completions(self) -> tuple[Completion, ...]:
        """All answers so far, errors left out, oldest first."""
        return tuple(c for t in self.turns for c in t.completions if c.ok)

    @property
    def spent_usd(self) -> float:
        return sum(t.cost_usd for t in self.turns)

    @property
    def turns_left(self) -> int:
        return self.max_turns - len(self.turns)


def answer_groups(completions: Iterable[Completion]) -> list[tuple[str, list[Completion]]]:
    """Group completions by equal answers, the answer of most models first.

    A model that repeats itself has one voice: a replayed model agrees with itself always. Ties
    go to the answer that was given most recently, since later calls are usually the stronger
    models. Completions without an answer belong to no group.
    """
    items = [c for c in completions if c.ok and c.answer is not None]
    counts = Counter(answer for answer, _ in {(c.answer, c.model) for c in items})
    latest = {c.answer: i for i, c in enumerate(items)}
    order = sorted(counts, key=lambda a: (-counts[a], -latest[a]))
    return [(str(a), [c for c in items if c.answer == a]) for a in order]


def best_so_far(completions: Iterable[Completion]) -> Completion | None:
    """The answer to fall back on: the latest of the largest agreeing group, else the latest
    text there is, else None."""
    items = list(completions)
    if groups := answer_groups(items):
        return groups[0][1][-1]
    texts = [c for c in items if c.ok and c.text.strip()]
    return texts[-1] if texts else None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
