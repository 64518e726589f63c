"""What the router is told, and how a user's request reaches it and the models it calls.

The request envelope keeps the user's own system prompt and the whole history: the router sees
them as data (``USER SYSTEM`` / ``USER QUERY``), the called model sees them as its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from xrouter.episode import Completion, Message, State, Task, ToolResult, Turn

AGENT_PROMPT = """\
You are a router. For each request you decide who answers, so that the answer is right and the \
total cost is low. Your tools call language models of different price and strength; their \
prices are in the tool descriptions.

- Small talk, or something you surely know: answer directly, without any call.
- Otherwise call one or more models, in parallel where a comparison helps. Start cheap when a \
cheap model is likely to be right. Answers that agree are more trustworthy; when they differ, \
ask a stronger model.
- Finish with select_response to return one model's answer word for word, or write the answer \
yourself from what the models said.
- You have at most {max_turns} turns. Weight of cost against quality: {cost_weight:g} \
(0 = quality only).\
"""

SIMPLE_PROMPT = """\
You are a router. Choose exactly one tool call: the model that will answer this request well at \
the lowest cost. Its answer is returned to the user as it is. Weight of cost against quality: \
{cost_weight:g} (0 = quality only).\
"""


def router_system_prompt(state: State) -> str:
    template = AGENT_PROMPT if state.mode == "agent" else SIMPLE_PROMPT
    return template.format(max_turns=state.max_turns, cost_weight=state.cost_weight)


def request_envelope(task: Task) -> str:
    """The user's request as the router sees it."""
    system = f"USER SYSTEM:\n{task.system}\n\n" if task.system else ""
    return f"{system}USER QUERY:\n{task.query}"


def router_messages(state: State, *, max_result_chars: int = 4000) -> list[Message]:
    """OpenAI messages for a chat model that acts as the router, turns so far included."""
    messages: list[Message] = [{"role": "system", "content": router_system_prompt(state)}]
    messages += state.task.history
    messages.append({"role": "user", "content": request_envelope(state.task)})
    seen: list[Completion] = []
    for turn in state.turns:
        messages.append(_assistant_message(turn))
        for result in turn.results:
            if result.completion is not None:
                seen.append(result.completion)
            messages.append(
                {
                    "role": "tool",
                    "tool_call_id": result.call.id,
                    "content": render_result(result, seen, max_chars=max_result_chars),
                }
            )
        for error in turn.decision.parse_errors:
            messages.append({"role": "user", "content": f"TOOL ERROR: {error}"})
    return messages


def _assistant_message(turn: Turn) -> Message:
    message: dict[str, Any] = {"role": "assistant", "content": turn.decision.content or None}
    if turn.results:
        message["tool_calls"] = [
            {
                "id": result.call.id,
                "type": "function",
                "function": {
                    "name": result.call.name,
                    "arguments": json.dumps(dict(result.call.arguments), ensure_ascii=False),
                },
            }
            for result in turn.results
        ]
    elif not turn.decision.content:
        message["content"] = ""
    return message


def render_result(result: ToolResult, seen: Sequence[Completion], *, max_chars: int = 4000) -> str:
    """A tool result as JSON text: the answer, its cost, and which answers it agrees with."""
    completion = result.completion
    error = result.error or (completion.error if completion else None)
    if error:
        return json.dumps({"error": error}, ensure_ascii=False)
    if completion is None:
        return json.dumps({"status": "accepted"})
    agreeing = sorted(
        {c.model for c in seen if c.ok and c.answer is not None and c.answer == completion.answer}
        - {completion.model}
    )
    text = completion.text
    if len(text) > max_chars:
        half = max_chars // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
    return json.dumps(
        {
            "model": completion.model,
            "response": text,
            "final_answer": completion.answer,
            "agrees_with": agreeing,
            "cost_usd": round(completion.cost_usd, 8),
        },
        ensure_ascii=False,
    )


def model_messages(task: Task, optimized_system_prompt: str | None) -> list[Message]:
    """The messages a called model receives: the router's system prompt, then the user's own,
    then the history and the query; or the client's conversation as it was sent."""
    if task.messages:
        return _with_system(task.messages, optimized_system_prompt)
    parts = [p for p in (optimized_system_prompt, task.system) if p]
    messages: list[Message] = []
    if parts:
        messages.append({"role": "system", "content": "\n\n".join(parts)})
    messages += task.history
    messages.append({"role": "user", "content": task.query})
    return messages


def _with_system(messages: Sequence[Message], prompt: str | None) -> list[Message]:
    """The conversation with ``prompt`` put before its own system prompt, if there is one."""
    first = messages[0]
    if not prompt:
        return list(messages)
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{prompt}\n\n{first['content']}"}, *messages[1:]]
    return [{"role": "system", "content": prompt}, *messages]
