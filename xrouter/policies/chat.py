"""Any chat model as the router: the trained 7B on vLLM, or a hosted model behind LiteLLM.

The model gets the router's prompt and the tools; native tool calls are used where it makes them,
and Hermes blocks in its text otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xrouter.catalog import Catalog, ModelSpec
from xrouter.episode import Decision, State, ToolCall
from xrouter.metering import report_lost
from xrouter.prompts import router_messages
from xrouter.providers.call import CallFailed, streamed_call
from xrouter.providers.library import litellm
from xrouter.providers.params import call_params
from xrouter.providers.stream import ReplyBuilder
from xrouter.providers.tokens import upper_bound
from xrouter.providers.trim import fit_context
from xrouter.tools import ToolError, parse_tool_calls, read_arguments, tool_schemas

RESULT_CHARS = 4000


class ChatPolicy:
    """Routes with a chat model.

    ``model`` is a LiteLLM name (``gpt-5-nano``, ``hosted_vllm/router-tool-rl``) or a catalog id.
    ``spec`` gives its prices and limits; without one it is looked up in the catalog, and priced
    as the router itself where it is not there. ``decide`` raises
    :class:`~xrouter.providers.call.CallFailed` when the model cannot be reached; what failed
    attempts consumed is part of the decision's cost, or reported as lost.
    """

    def __init__(
        self,
        model: str,
        catalog: Catalog,
        *,
        spec: ModelSpec | None = None,
        api_base: str | None = None,
        api_key: str | None = None,
        temperature: float | None = None,
        max_output_tokens: int = 4096,
        timeout_s: float = 60.0,
        retries: int = 1,
    ) -> None:
        self.spec = spec or _spec_for(model, catalog)
        self.name = f"chat:{self.spec.id}"
        self.temperature = temperature
        self.max_output_tokens = min(max_output_tokens, self.spec.max_output_tokens)
        self.retries = retries
        self.timeout_s = timeout_s
        self._target: dict[str, Any] = {"model": self.spec.litellm_id or model}
        if api_base:
            self._target["api_base"] = api_base
        if api_key:
            self._target["api_key"] = api_key

    async def decide(self, state: State) -> Decision:
        tools = tool_schemas(state.pool, select=state.mode == "agent")
        messages = fit_context(
            router_messages(state, max_result_chars=RESULT_CHARS), self.spec, {"tools": tools}
        )
        failed: list[float] = []
        for left in range(self.retries, -1, -1):
            reply = ReplyBuilder()
            try:
                attempt = await streamed_call(
                    self._open(messages, tools, state.mode),
                    reply,
                    spec=self.spec,
                    messages=messages,
                    tools=tools,
                    idle_timeout_s=self.timeout_s,
                )
            except CallFailed as failure:
                failed.append(failure.attempt.cost_usd)
                if not left:
                    report_lost(sum(failed))
                    raise
            except BaseException:
                report_lost(sum(failed))
                raise
            else:
                cost = attempt.cost_usd + sum(failed)
                return decision(reply, attempt.input_tokens, attempt.output_tokens, cost)
        raise AssertionError("unreachable")

    async def _open(
        self, messages: Sequence[Any], tools: Sequence[dict[str, Any]], mode: str
    ) -> Any:
        options = {
            "tools": tools,
            "tool_choice": "auto" if mode == "agent" else "required",
            "max_tokens": self.max_output_tokens,
        }
        return await litellm().acompletion(
            **self._target,
            messages=list(messages),
            stream=True,
            stream_options={"include_usage": True},
            timeout=self.timeout_s,
            max_retries=0,
            _skip_mcp_handler=True,
            **call_params(self.spec, options, temperature=self.temperature),
        )

    def most_usd(self, state: State, max_calls: int) -> float:
        """An upper bound on the cost of one decision in this episode, for reservations."""
        tools = tool_schemas(state.pool)
        seen = (state.max_turns - 1) * max_calls * 4 * (RESULT_CHARS + 500)
        prompt = upper_bound(router_messages(state), tools) + seen
        return self.spec.cost(min(prompt, self.spec.context_window), self.max_output_tokens)


def decision(
    reply: ReplyBuilder, input_tokens: int = 0, output_tokens: int = 0, cost_usd: float = 0.0
) -> Decision:
    """A reply as a decision. Native calls come first; without any, the text is searched for
    Hermes blocks. What cannot be read becomes a parse error."""
    calls: list[ToolCall] = []
    errors: list[str] = []
    for raw in reply.tool_calls:
        function = raw["function"]
        try:
            arguments = read_arguments(function["arguments"])
        except ToolError as error:
            errors.append(f"{function['name']}: {error}")
        else:
            calls.append(ToolCall(function["name"], arguments, raw["id"]))
    content, parsed, unread = parse_tool_calls(reply.text)
    if not calls and not errors:
        calls, errors = list(parsed), list(unread)
    return Decision(
        content=content,
        tool_calls=tuple(calls),
        parse_errors=tuple(errors),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost_usd=cost_usd,
    )


def _spec_for(model: str, catalog: Catalog) -> ModelSpec:
    for spec in catalog:
        if model in (spec.id, spec.litellm_id):
            return spec
    price = catalog.router_price
    return ModelSpec(
        id=model,
        input_usd_per_million=price.input_usd_per_million,
        output_usd_per_million=price.output_usd_per_million,
        tiers=("budget",),
        litellm_id=model,
        provider="vllm",
        context_window=32_768,
        max_output_tokens=8192,
    )
