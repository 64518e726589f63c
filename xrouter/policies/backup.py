"""A policy that is never at a loss: where the router fails or says nothing of use, a stand-in
decides."""

from __future__ import annotations

import logging
from collections.abc import Callable

from xrouter.catalog import ModelSpec
from xrouter.episode import Decision, State
from xrouter.orchestrator import Policy
from xrouter.policies.cascades import by_price, call_and_select, select
from xrouter.tools import ToolError, resolve

log = logging.getLogger(__name__)


class PassThrough:
    """Calls one model, for a client that asked for it by name. Costs nothing itself."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.name = f"pass_through:{model}"

    async def decide(self, state: State) -> Decision:
        spec = next(s for s in state.pool if s.id == self.model)
        return call_and_select(state, spec)


class WithBackup:
    """``policy``, with ``model`` (default: the cheapest of the pool) called in its place when it
    raises, when it says nothing, and when its last chance would end without an answer.

    ``most_usd`` is the policy's bound on the cost of a decision, where a provider is paid for it.
    """

    def __init__(self, policy: Policy, model: str | None = None) -> None:
        self.policy = policy
        self.model = model
        self.name = policy.name
        self.most_usd: Callable[[State, int], float] | None = getattr(policy, "most_usd", None)

    async def decide(self, state: State) -> Decision:
        try:
            made = await self.policy.decide(state)
        except Exception as error:
            log.warning("policy %s failed: %s: %s", self.name, type(error).__name__, error)
            return self._instead(state)
        if _leads_somewhere(made, state):
            return made
        log.warning("policy %s made a decision of no use; the backup decides", self.name)
        stand_in = self._instead(state)
        return Decision(
            tool_calls=stand_in.tool_calls,
            input_tokens=made.input_tokens,
            output_tokens=made.output_tokens,
            cost_usd=made.cost_usd,
        )

    def _instead(self, state: State) -> Decision:
        if state.completions and state.mode == "agent":
            return select(state, state.completions[-1])
        return call_and_select(state, self._spec(state))

    def _spec(self, state: State) -> ModelSpec:
        failed = {c.model for t in state.turns for c in t.completions if not c.ok}
        order = [s for s in state.pool if s.id == self.model] + by_price(state.pool)
        return next((s for s in order if s.id not in failed), order[0])


def _leads_somewhere(made: Decision, state: State) -> bool:
    """Whether the decision answers, or calls a model, or leaves a turn in which to do better."""
    answered = [c.model for c in state.completions]
    calls = 0
    for call in made.tool_calls:
        try:
            resolve(call, state.pool, [*answered, *(s.id for s in state.pool)])
        except ToolError:
            continue
        calls += 1
    if state.mode == "simple":
        return calls > 0
    if made.tool_calls or made.parse_errors:
        return calls > 0 or state.turns_left > 1 or bool(answered)
    return bool(made.content.strip())
