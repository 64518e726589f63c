"""One contract, three targets: the fake provider itself (the control), a pool model through the
server, and the router. Clients: openai (sync, async), litellm, curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support_serving import FakeProvider, XRouterServer

openai = pytest.importorskip("openai")
pytest.importorskip("litellm")

from pydantic import BaseModel  # noqa: E402

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


@cache
def client_of(base: str) -> Any:
    return openai.OpenAI(base_url=base, api_key="dummy", max_retries=0)


@dataclass(frozen=True)
class Target:
    """Where the contract is held against; ``served`` is the model that answers there."""

    base: str
    model: str
    served: str
    provider: FakeProvider

    @property
    def client(self) -> Any:
        return client_of(self.base)

    def create(self, messages: list[Any] = HELLO, **parameters: Any) -> Any:
        return self.client.chat.completions.create(
            model=self.model, messages=messages, **parameters
        )

    def last_sent(self) -> dict[str, Any]:
        return self.provider.books()[-1]["request"]


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def server(
    provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[XRouterServer]:
    with XRouterServer(tmp_path_factory.mktemp("contract"), provider) as running:
        yield running


@pytest.fixture(params=["control", "pass_through", "router"])
def target(request: pytest.FixtureRequest, provider: FakeProvider, server: XRouterServer) -> Target:
    provider.reset()
    if request.param == "control":
        return Target(provider.base, "gpt-4o", "gpt-4o", provider)
    if request.param == "pass_through":
        return Target(server.base, "gpt-4o", "gpt-4o", provider)
    return Target(server.base, "router-tool-rl", "gpt-4.1-nano", provider)


def test_a_plain_reply_has_the_shape_of_a_chat_completion(target: Target) -> None:
    reply = target.create(max_tokens=1000)
    assert reply.object == "chat.completion"
    assert reply.model == target.model
    assert reply.id.startswith("chatcmpl-")
    (choice,) = reply.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert choice.message.role == "assistant"
    assert choice.message.content.startswith(f"{target.served}:")
    assert choice.message.tool_calls is None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens > 0


def test_the_whole_conversation_reaches_the_model(target: Target) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": [{"type": "text", "text": "three"}]},
    ]
    target.create(messages)
    assert target.last_sent()["messages"] == messages


def test_images_reach_the_model(target: Target) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "see"}, image]}]
    target.create(messages)
    assert target.last_sent()["messages"] == messages


def test_parameters_and_unknown_fields_reach_the_model(target: Target) -> None:
    given = {"seed": 3, "top_p": 0.5, "temperature": 0.25, "stop": ["zzz"], "user": "u1"}
    target.create(**given, extra_body={"brand_new": {"deep": [1]}})
    sent = target.last_sent()
    assert {k: sent[k] for k in given} == given
    assert sent["brand_new"] == {"deep": [1]}


def test_equal_seeds_give_equal_replies(target: Target) -> None:
    first, second, other = (target.create(seed=s).choices[0].message.content for s in (1, 1, 2))
    assert first == second != other


def test_max_tokens_ends_a_reply_with_length(target: Target) -> None:
    reply = target.create(max_tokens=5)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 5


def test_a_stop_sequence_ends_a_reply(target: Target) -> None:
    assert ":" not in target.create(stop=":").choices[0].message.content


def test_several_choices_come_back_in_order(target: Target) -> None:
    reply = target.create(n=3)
    assert [c.index for c in reply.choices] == [0, 1, 2]
    assert len({c.message.content for c in reply.choices}) == 3


def test_log_probabilities_come_back(target: Target) -> None:
    reply = target.create(logprobs=True, top_logprobs=2)
    entries = reply.choices[0].logprobs.content
    assert "".join(e.token for e in entries) == reply.choices[0].message.content
    assert len(entries[0].top_logprobs) == 2


def test_a_stream_begins_with_the_role_and_ends_with_a_finish_reason(target: Target) -> None:
    chunks = list(target.create(stream=True))
    assert all(c.object == "chat.completion.chunk" for c in chunks)
    assert len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == target.create().choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert reasons[-1] == "stop"
    assert not any(reasons[:-1])
    assert all(c.usage is None for c in chunks)


def test_include_usage_adds_one_last_chunk_without_choices(target: Target) -> None:
    chunks = list(target.create(stream=True, stream_options={"include_usage": True}))
    assert [bool(c.choices) for c in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1].usage.completion_tokens == target.create().usage.completion_tokens


def test_several_choices_can_be_streamed(target: Target) -> None:
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    for chunk in target.create(n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert ends == {0: "stop", 1: "stop"}
    assert len(set(texts.values())) == 2


def test_the_clients_own_tools_make_a_round_trip(target: Target) -> None:
    question = {"role": "user", "content": "weather?"}
    asked = target.create([question], tools=[WEATHER], tool_choice="required")
    assert asked.choices[0].finish_reason == "tool_calls"
    message = asked.choices[0].message
    (call,) = message.tool_calls
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "stone", "days": 1}
    assert message.content is None
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    follow = target.create(
        [question, message.model_dump(exclude_none=True), result], tools=[WEATHER]
    )
    assert follow.choices[0].message.content == "The tool said: sunny"
    assert target.last_sent()["messages"][-1] == result


def test_streamed_tool_calls_carry_id_and_name_once(target: Target) -> None:
    stream = target.create(tools=[WEATHER], tool_choice="required", stream=True)
    parts, reasons = [], []
    for chunk in stream:
        reasons.append(chunk.choices[0].finish_reason)
        parts += chunk.choices[0].delta.tool_calls or []
    assert [bool(p.id) for p in parts] == [True] + [False] * (len(parts) - 1)
    assert [p.function.name for p in parts if p.function.name] == ["get_weather"]
    assert json.loads("".join(p.function.arguments or "" for p in parts)) == {
        "city": "stone",
        "days": 1,
    }
    assert reasons[-1] == "tool_calls"


def test_the_openai_stream_helper_assembles_a_tool_call(target: Target) -> None:
    with target.client.chat.completions.stream(
        model=target.model, messages=HELLO, tools=[WEATHER], tool_choice="required"
    ) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "get_weather"


class City(BaseModel):
    name: str
    size: int


def test_structured_output_is_parsed_by_the_client(target: Target) -> None:
    reply = target.client.chat.completions.parse(
        model=target.model, messages=HELLO, response_format=City
    )
    assert reply.choices[0].message.parsed == City(name="stone", size=1)
    assert target.last_sent()["response_format"]["type"] == "json_schema"


def test_json_mode_returns_json(target: Target) -> None:
    reply = target.create(response_format={"type": "json_object"})
    assert json.loads(reply.choices[0].message.content) == {"answer": "stone"}


def test_a_bad_request_is_an_openai_error_that_is_not_retried(target: Target) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        target.create(messages=[])
    body = caught.value.response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_not_found(target: Target) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        target.client.chat.completions.create(model="no-such-model", messages=HELLO)
    assert caught.value.code == "model_not_found"


def test_the_providers_refusal_reaches_the_client_as_a_bad_request(target: Target) -> None:
    with pytest.raises(openai.BadRequestError):
        target.create(response_format={"type": "nonsense"})


def test_models_can_be_listed_and_retrieved(target: Target) -> None:
    rows = target.client.models.list().data
    assert all(row.object == "model" for row in rows)
    name = rows[0].id
    assert target.client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError):
        target.client.models.retrieve("no-such-model")


def test_the_async_client_gets_many_replies_at_once(target: Target) -> None:
    async def one(client: Any, number: int) -> str:
        message = {"role": "user", "content": f"question {number}"}
        if number % 2:
            reply = await client.chat.completions.create(model=target.model, messages=[message])
            return str(reply.choices[0].message.content)
        stream = await client.chat.completions.create(
            model=target.model, messages=[message], stream=True
        )
        parts = [c.choices[0].delta.content or "" async for c in stream]
        return "".join(parts)

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=target.base, api_key="dummy", max_retries=0
        ) as client:
            return await asyncio.gather(*(one(client, i) for i in range(12)))

    texts = asyncio.run(main())
    assert len(set(texts)) == 12
    assert all(t.startswith(f"{target.served}:") for t in texts)


def test_litellm_works_as_a_client(target: Target) -> None:
    import litellm

    common = {
        "model": f"openai/{target.model}",
        "api_base": target.base,
        "api_key": "dummy",
        "messages": HELLO,
    }
    whole = litellm.completion(**common)
    parts = [c.choices[0].delta.content or "" for c in litellm.completion(**common, stream=True)]
    assert whole.choices[0].message.content == "".join(parts)
    assert whole.usage.completion_tokens > 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_json_and_server_sent_events(target: Target) -> None:
    def curl(**more: Any) -> str:
        body = json.dumps({"model": target.model, "messages": HELLO, **more})
        url = f"{target.base}/chat/completions"
        command = ["curl", "-sS", "-N", "--fail", url, "-H", "content-type: application/json"]
        return subprocess.run(
            [*command, "-d", body], check=True, capture_output=True, text=True
        ).stdout

    whole = json.loads(curl())
    lines = [line for line in curl(stream=True).split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert text == whole["choices"][0]["message"]["content"]


def test_the_model_cards_example_runs_unchanged(server: XRouterServer) -> None:
    client = openai.OpenAI(base_url=server.base, api_key="dummy")
    response = client.chat.completions.create(
        model="router-tool-rl",
        messages=[{"role": "user", "content": "What is 2 + 2?"}],
        max_tokens=1000,
    )
    metadata = response.router_metadata
    assert metadata["model_used"] == "gpt-4.1-nano"
    assert metadata["total_cost"] > 0


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XRouterServer]:
    with XRouterServer(tmp_path_factory.mktemp("simulated")) as running:
        yield running


def test_the_simulated_world_serves_the_same_clients_and_says_what_it_is(
    simulated: XRouterServer, tmp_path: Path
) -> None:
    client = openai.OpenAI(base_url=simulated.base, api_key="dummy")
    whole = client.chat.completions.create(model="xrouter", messages=HELLO)
    assert whole.router_metadata["world"] == "simulated"
    parts = list(client.chat.completions.create(model="xrouter", messages=HELLO, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in parts)
    assert parts[-1].router_metadata["world"] == "simulated"
