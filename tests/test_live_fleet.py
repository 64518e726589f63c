"""The live fleet and the chat policy, over real HTTP against a provider that misbehaves."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from support_serving import FakeProvider, live_config, small_catalog

pytest.importorskip("litellm")

from xrouter.catalog import Catalog, ModelSpec
from xrouter.episode import Completion, Decision, State, Task, ToolCall
from xrouter.fleets.live import LiveFleet, NoModelsError
from xrouter.metering import lost_costs
from xrouter.orchestrator import FleetRequest, Limits, Orchestrator
from xrouter.policies.chat import ChatPolicy, decision
from xrouter.providers.call import short_error
from xrouter.providers.keys import (
    DEFAULT_PROVIDERS,
    ProviderConfig,
    read_env_file,
    usable_models,
)
from xrouter.providers.params import call_params
from xrouter.providers.stream import ReplyBuilder
from xrouter.providers.tokens import count_prompt, count_text, upper_bound
from xrouter.providers.trim import fit_context

MICRO = 1e-6
BROKEN_MID_STREAM = ("cut", "early_eof", "invalid_json")
REFUSED_BEFORE_A_TOKEN = ("429", "500", "401")
WRONG_USAGE = ("usage_missing", "usage_zero", "usage_huge", "usage_negative")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(provider: FakeProvider) -> None:
    provider.reset()


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return small_catalog()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run on a loop of its own; a moment is left for the provider to close its books."""

    async def main() -> Any:
        result = await work
        await asyncio.sleep(0.05)
        return result

    return asyncio.run(main())


def ask(
    provider: FakeProvider,
    query: str = "hello there",
    *,
    model: str = "gpt-4o",
    pool: tuple[str, ...] = (),
    settings: dict[str, Any] | None = None,
    **request: Any,
) -> Completion:
    fleet = LiveFleet(small_catalog(), live_config(provider, **(settings or {})))
    return run(fleet.complete(FleetRequest(Task("t", query, pool=pool), model, **request)))


def texts(deltas: list[Any]) -> str:
    return "".join(d["delta"].get("content") or "" for d in deltas)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("fault", BROKEN_MID_STREAM)
def test_a_broken_stream_is_taken_up_again_and_both_parts_are_billed(
    provider: FakeProvider, catalog: Catalog, fault: str, streamed: bool
) -> None:
    provider.control(faults={"gpt-4o": [fault]})
    seen: list[Any] = []
    done = ask(provider, on_delta=seen.append if streamed else None)
    assert done.ok
    assert [a.error is None for a in done.attempts] == [False, True]
    assert done.attempts[0].estimated
    assert done.attempts[0].output_tokens == 3
    assert done.cost_usd == pytest.approx(provider.true_cost(catalog), abs=MICRO / 1000)
    if streamed:
        assert texts(seen) == done.text
        assert sum("role" in d["delta"] for d in seen) == 1


@pytest.mark.parametrize("fault", REFUSED_BEFORE_A_TOKEN)
def test_a_refusal_fails_over_within_the_pool_and_costs_nothing(
    provider: FakeProvider, catalog: Catalog, fault: str
) -> None:
    provider.control(faults={"gpt-4.1-nano": [fault]})
    done = ask(provider, model="gpt-4.1-nano", pool=("gpt-4.1-nano", "gpt-4o-mini", "gpt-4o"))
    assert done.ok
    assert done.model == "gpt-4.1-nano"
    assert done.served_by == "gpt-4o-mini"
    assert done.cost_usd == pytest.approx(provider.true_cost(catalog), abs=MICRO / 1000)


def test_failover_prefers_the_same_tier_then_the_nearest_price(provider: FakeProvider) -> None:
    fleet = LiveFleet(small_catalog(), live_config(provider))
    everyone = tuple(fleet.catalog.models)
    assert fleet.stand_ins("gpt-4.1-nano", everyone)[0] == "gpt-4o-mini"
    assert fleet.stand_ins("gpt-4o", everyone)[0] == "gpt-5-mini"
    assert fleet.stand_ins("gpt-4o", ("gpt-4o",)) == []


def test_a_hanging_model_is_given_up_after_the_timeout(
    provider: FakeProvider, catalog: Catalog
) -> None:
    provider.control(faults={"gpt-4o": ["hang"]})
    started = time.monotonic()
    done = ask(provider, settings={"timeout_s": 0.4})
    assert time.monotonic() - started < 3
    assert done.served_by != "gpt-4o"
    assert done.cost_usd == pytest.approx(provider.true_cost(catalog), abs=MICRO / 1000)


def test_a_slow_drip_is_waited_for_and_a_silence_is_not(
    provider: FakeProvider, catalog: Catalog
) -> None:
    provider.control(drip_s=0.1)
    assert ask(provider, "[[fault=drip]] [[words=3]]", settings={"idle_timeout_s": 0.4}).ok
    provider.control(drip_s=3.0)
    silent = ask(
        provider,
        "[[fault=drip]] [[words=3]]",
        pool=("gpt-4o",),
        settings={"idle_timeout_s": 0.2, "max_attempts": 1},
    )
    assert "nothing came for 0.2 s" in str(silent.error)
    assert silent.cost_usd > 0, "the prompt was read"


@pytest.mark.parametrize("fault", WRONG_USAGE)
def test_impossible_usage_is_replaced_by_our_own_count(
    provider: FakeProvider, catalog: Catalog, fault: str
) -> None:
    done = ask(provider, f"tell me [[fault={fault}]]")
    assert done.ok
    assert done.attempts[-1].estimated
    assert done.cost_usd == pytest.approx(provider.true_cost(catalog), abs=MICRO / 1000)


def test_cached_tokens_are_billed_at_the_cached_price(
    provider: FakeProvider, catalog: Catalog
) -> None:
    done = ask(provider, "hello [[cached=6]]", model="gpt-4.1-nano")
    assert done.cached_input_tokens == 6
    spec = catalog["gpt-4.1-nano"]
    assert done.cost_usd < spec.cost(done.input_tokens, done.output_tokens)
    assert done.cost_usd == pytest.approx(provider.true_cost(catalog), abs=MICRO / 1000)


def test_a_request_that_is_at_fault_itself_is_not_sent_again(provider: FakeProvider) -> None:
    done = ask(provider, options={"response_format": {"type": "nonsense"}})
    assert (done.error_status, len(done.attempts)) == (400, 1)
    assert done.text == ""


def test_when_every_model_fails_the_error_says_so_and_nothing_raises(
    provider: FakeProvider,
) -> None:
    provider.control(rate=1.0, kinds=["500"])
    done = ask(provider)
    assert done.error is not None
    assert "injected 500" in done.error
    assert done.error_status == 500
    assert done.cost_usd == 0


def test_a_model_that_keeps_failing_is_left_alone_for_a_while(provider: FakeProvider) -> None:
    provider.control(faults={"gpt-4o": ["500"] * 20})

    async def main() -> list[Completion]:
        fleet = LiveFleet(small_catalog(), live_config(provider, allowed_fails=2, cooldown_s=30))
        request = FleetRequest(Task("t", "hi", pool=("gpt-4o", "gpt-4.1-mini")), "gpt-4o")
        return [await fleet.complete(request) for _ in range(8)]

    done = run(main())
    assert all(c.served_by == "gpt-4.1-mini" for c in done)
    tried = [e for e in provider.books() if e["model"] == "gpt-4o"]
    assert len(tried) < 8


def test_a_server_error_is_retried_on_the_same_model(provider: FakeProvider) -> None:
    provider.control(faults={"gpt-4o": ["500"]})
    done = ask(provider, settings={"retries": 1})
    assert done.served_by == "gpt-4o"
    assert [e["status"] for e in provider.books()] == [500, 200]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_cancelled_call_is_billed_for_what_had_come(
    provider: FakeProvider, catalog: Catalog, streamed: bool
) -> None:
    provider.control(drip_s=0.1)

    async def main() -> tuple[list[float], list[Any]]:
        fleet = LiveFleet(small_catalog(), live_config(provider))
        seen: list[Any] = []
        request = FleetRequest(
            Task("t", "hello [[fault=drip]] [[words=50]]"),
            "gpt-4o",
            on_delta=seen.append if streamed else None,
        )
        with lost_costs() as lost:
            call = asyncio.ensure_future(fleet.complete(request))
            await asyncio.sleep(1.5)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        await asyncio.sleep(0.3)
        return lost, seen

    lost, _ = run(main())
    (entry,) = provider.books()
    assert 0 < entry["output_tokens"] < 50
    assert not entry["finished"]
    token = catalog["gpt-4o"].cost(0, 1)
    assert sum(lost) == pytest.approx(provider.true_cost(catalog), abs=1.01 * token)


def test_an_episode_that_times_out_carries_the_cost_of_the_unfinished_call(
    provider: FakeProvider, catalog: Catalog
) -> None:
    provider.control(drip_s=0.1)

    class CallOne:
        name = "one"

        async def decide(self, state: State) -> Decision:
            return Decision(tool_calls=(ToolCall(state.pool[0].tool_name),))

    charged: list[float] = []
    fleet = LiveFleet(small_catalog(), live_config(provider))
    orchestrator = Orchestrator(
        fleet,
        limits=Limits(max_turns=1, call_timeout_s=1.0),
        on_cost=lambda _, usd: charged.append(usd),
    )
    task = Task("t", "[[fault=drip]] [[words=60]]", pool=("gpt-4o",))
    episode = run(orchestrator.run(task, CallOne()))
    assert episode.answer_source == "none"
    assert episode.cost_usd == pytest.approx(sum(charged))
    token = catalog["gpt-4o"].cost(0, 1)
    assert episode.cost_usd == pytest.approx(provider.true_cost(catalog), abs=1.01 * token)


def test_a_call_never_costs_more_than_its_allowance(
    provider: FakeProvider, catalog: Catalog
) -> None:
    allowance = 0.0005
    done = ask(provider, "go on [[words=2000]]", model="gpt-4o-mini", max_cost_usd=allowance)
    assert done.finish_reason == "length"
    assert 0.5 * allowance < done.cost_usd <= allowance
    refused = ask(provider, "go on", model="gpt-4o", max_cost_usd=1e-6)
    assert refused.error_status == 402
    assert refused.cost_usd == 0


def test_an_allowance_covers_all_attempts_together(
    provider: FakeProvider, catalog: Catalog
) -> None:
    provider.control(rate=1.0, kinds=["cut"])
    allowance = 0.004
    done = ask(provider, "go on [[words=500]]", max_cost_usd=allowance)
    assert not done.ok
    assert len(done.attempts) > 1
    assert done.cost_usd == pytest.approx(provider.true_cost(catalog), abs=MICRO / 1000)
    assert done.cost_usd <= allowance


def test_the_clients_parameters_and_unknown_fields_reach_the_model(provider: FakeProvider) -> None:
    options = {
        "stop": ["stone"],
        "seed": 7,
        "top_p": 0.9,
        "max_tokens": 40,
        "temperature": 0.1,
        "some_new_field": {"a": 1},
    }
    ask(provider, options=options, temperature=0.9)
    sent = provider.books()[-1]["request"]
    assert {k: sent[k] for k in options} == options


def test_the_clients_fields_cannot_steer_litellm(provider: FakeProvider) -> None:
    options = {"api_base": "http://127.0.0.1:1", "mock_response": "x", "api_key": "y"}
    done = ask(provider, options=options, pool=("gpt-4o",))
    assert done.ok
    assert len(provider.books()) == 1


def test_reasoning_models_get_no_temperature_and_the_new_token_limit(
    provider: FakeProvider,
) -> None:
    done = ask(
        provider,
        model="gpt-5-mini",
        pool=("gpt-5-mini",),
        temperature=0.3,
        options={"temperature": 0.2, "max_tokens": 64, "stop": "x", "logprobs": True},
    )
    assert done.ok
    sent = provider.books()[-1]["request"]
    assert sent["max_completion_tokens"] == 64
    assert not {"temperature", "max_tokens", "stop", "logprobs"} & set(sent)


def test_tool_calls_choices_and_logprobs_come_back_in_wire_form(provider: FakeProvider) -> None:
    tools = ask(provider, "[[tool]]", options={"tools": [WEATHER]})
    assert tools.finish_reason == "tool_calls"
    (call,) = tools.choices[0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "stone"}
    several = ask(provider, "hi", options={"n": 3, "logprobs": True, "top_logprobs": 2})
    assert [c["index"] for c in several.choices] == [0, 1, 2]
    assert all(c["finish_reason"] == "stop" for c in several.choices)
    assert several.choices[1]["logprobs"]["content"][0]["logprob"] == -0.25
    short = ask(provider, "hi", options={"n": 2, "max_tokens": 4})
    assert [c["finish_reason"] for c in short.choices] == ["length", "length"]


def test_a_model_that_may_not_be_streamed_is_asked_for_whole_replies_from_then_on(
    provider: FakeProvider, catalog: Catalog
) -> None:
    provider.control(rate=1.0, kinds=["no_stream"])
    seen: list[Any] = []

    async def main() -> list[Completion]:
        fleet = LiveFleet(small_catalog(), live_config(provider))
        options: list[dict[str, Any]] = [{}, {"tools": [WEATHER], "tool_choice": "required"}]
        return [
            await fleet.complete(
                FleetRequest(
                    Task("t", "hi", pool=("gpt-4o",)), "gpt-4o", options=o, on_delta=seen.append
                )
            )
            for o in options
        ]

    text, tools = run(main())
    assert texts(seen) == text.text != ""
    assert tools.choices[0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert [e["status"] for e in provider.books()] == [400, 200, 200]
    cost = text.cost_usd + tools.cost_usd
    assert cost == pytest.approx(provider.true_cost(catalog), abs=MICRO / 1000)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_model_of_the_responses_api_streams_and_is_billed_like_the_others(
    provider: FakeProvider, streamed: bool
) -> None:
    catalog = Catalog.load()
    fleet = LiveFleet(catalog, live_config(provider), environment={})
    seen: list[Any] = []
    request = FleetRequest(
        Task("t", "hello", pool=("o3-pro",)),
        "o3-pro",
        options={"max_tokens": 500, "temperature": 0.1},
        on_delta=seen.append if streamed else None,
    )
    done = run(fleet.complete(request))
    assert done.text.startswith("o3-pro:")
    assert done.finish_reason == "stop"
    assert provider.books()[-1]["id"].startswith("resp_")
    assert done.cost_usd == pytest.approx(provider.true_cost(catalog), abs=MICRO / 1000)
    if streamed:
        assert texts(seen) == done.text


def test_tool_call_deltas_carry_id_and_name_once(provider: FakeProvider) -> None:
    seen: list[Any] = []
    ask(provider, "[[tool]]", options={"tools": [WEATHER]}, on_delta=seen.append)
    parts = [c for d in seen for c in d["delta"].get("tool_calls", ())]
    assert len(parts) > 2
    assert [("id" in p, "name" in p["function"]) for p in parts[:2]] == [
        (True, True),
        (False, False),
    ]


def test_models_without_a_key_are_left_out_and_the_log_says_which_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    catalog = Catalog.load()
    with caplog.at_level("INFO", logger="xrouter.fleets.live"):
        fleet = LiveFleet(catalog, environment={"OPENAI_API_KEY": "sk-secret-secret"})
    assert {s.provider for s in fleet.catalog} == {"openai"}
    assert "kimi-k2 is left out: set TOGETHER_API_KEY" in caplog.text
    assert "sk-secret" not in caplog.text
    assert "kimi-k2" not in fleet.catalog.pool("set2")


def test_without_any_key_the_error_names_the_variables() -> None:
    with pytest.raises(NoModelsError, match="set OPENAI_API_KEY"):
        LiveFleet(Catalog.load(), environment={})


def test_a_provider_that_needs_no_key_is_usable() -> None:
    spec = ModelSpec("m", 0, 0, ("budget",), provider="vllm")
    providers = {**DEFAULT_PROVIDERS, "vllm": ProviderConfig(api_base="http://localhost:8000/v1")}
    usable, left_out = usable_models(Catalog([spec]), providers, {})
    assert (usable, left_out) == ([spec], {})


def test_an_env_file_adds_names_and_overrides_none(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XROUTER_TEST_OLD", "kept")
    monkeypatch.delenv("XROUTER_TEST_NEW", raising=False)
    file = tmp_path / ".env"
    file.write_text("XROUTER_TEST_OLD=lost\nXROUTER_TEST_NEW='from file'\n# comment\n")
    assert read_env_file(file) == ["XROUTER_TEST_NEW"]
    import os

    assert os.environ.pop("XROUTER_TEST_NEW") == "from file"
    assert os.environ["XROUTER_TEST_OLD"] == "kept"
    assert read_env_file(tmp_path / "missing") == []


def test_keys_are_cut_out_of_error_texts() -> None:
    error = ValueError("litellm.AuthenticationError: bad key sk-abc123def456 in Bearer tok.en")
    assert "sk-abc" not in short_error(error)
    assert "tok.en" not in short_error(error)


def conversation(turns: int, words: int = 100) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [{"role": "system", "content": "be brief"}]
    for i in range(turns):
        out.append({"role": "user", "content": f"question {i} " + "word " * words})
        out.append({"role": "assistant", "content": None, "tool_calls": [{"id": str(i)}]})
        out.append({"role": "tool", "tool_call_id": str(i), "content": f"result {i}"})
    return [*out, {"role": "user", "content": "the last question"}]


def test_trimming_drops_the_oldest_exchanges_and_never_splits_one() -> None:
    spec = ModelSpec("m", 1, 1, ("budget",), context_window=1000, typical_output_tokens=100)
    messages = conversation(20)
    kept = fit_context(messages, spec, {})
    assert count_prompt(kept) <= 800 < count_prompt(messages)
    assert kept[0]["role"] == "system"
    assert kept[-1]["content"] == "the last question"
    assert kept[1]["role"] == "user"
    calls = {c["id"] for m in kept for c in m.get("tool_calls", ())}
    assert calls == {m["tool_call_id"] for m in kept if m["role"] == "tool"}
    assert kept[1:] == messages[-len(kept) + 1 :]


def test_a_conversation_that_fits_is_sent_as_it_is() -> None:
    spec = ModelSpec("m", 1, 1, ("budget",), context_window=100_000)
    messages = conversation(5)
    assert fit_context(messages, spec, {}) == messages


def test_a_prompt_never_has_more_tokens_than_its_bound() -> None:
    for text in ("plain words here", "1234567890" * 20, "日本語のテキスト", "\u200b☃️" * 30, ""):
        messages = [{"role": "user", "content": text}]
        assert count_prompt(messages) <= upper_bound(messages)


def test_counting_takes_linear_time_even_for_a_long_run_of_one_letter() -> None:
    count_text("warm up")
    started = time.monotonic()
    assert count_text("a" * 400_000) > 40_000
    assert count_text("word " * 400_000) == pytest.approx(400_000, rel=0.02)
    assert time.monotonic() - started < 20


def test_the_lower_of_the_clients_limit_and_the_budgets_is_sent() -> None:
    spec = small_catalog()["gpt-4o"]
    assert call_params(spec, {"max_tokens": 10}, max_output_tokens=50)["max_tokens"] == 10
    assert call_params(spec, {"max_tokens": 90}, max_output_tokens=50)["max_tokens"] == 50
    assert "max_tokens" not in call_params(spec, {})


def test_a_chat_model_routes_with_native_tool_calls(
    provider: FakeProvider, catalog: Catalog
) -> None:
    policy = ChatPolicy("openai/gpt-4.1-nano", catalog, api_base=provider.base, api_key="none")
    state = State(Task("t", "[[tool]]"), tuple(catalog), "agent")
    made = run(policy.decide(state))
    assert [c.name for c in made.tool_calls] == ["call_gpt_4_1_nano"]
    assert made.cost_usd == pytest.approx(provider.true_cost(catalog), abs=MICRO / 1000)
    assert made.cost_usd <= policy.most_usd(state, 8)


def test_hermes_text_is_read_where_there_are_no_native_calls() -> None:
    reply = ReplyBuilder()
    block = '<tool_call>{"name": "call_gpt_4o", "arguments": {"temperature": 0.5}}</tool_call>'
    reply.add({"index": 0, "delta": {"content": f"Let me ask. {block}"}})
    made = decision(reply)
    assert made.content == "Let me ask."
    assert made.tool_calls[0].name == "call_gpt_4o"
    assert made.tool_calls[0].arguments == {"temperature": 0.5}


def test_unreadable_native_arguments_become_a_parse_error() -> None:
    reply = ReplyBuilder()
    call = {"index": 0, "id": "1", "function": {"name": "call_gpt_4o", "arguments": "{oops"}}
    reply.add({"index": 0, "delta": {"tool_calls": [call]}})
    made = decision(reply)
    assert made.tool_calls == ()
    assert "not valid JSON" in made.parse_errors[0]


def test_a_router_that_fails_ends_the_episode_and_its_tokens_are_billed(
    provider: FakeProvider, catalog: Catalog
) -> None:
    provider.control(rate=1.0, kinds=["cut"])
    policy = ChatPolicy("openai/gpt-4.1-nano", catalog, api_base=provider.base, api_key="none")
    charged: list[tuple[str, float]] = []
    orchestrator = Orchestrator(
        LiveFleet(catalog, live_config(provider)),
        on_cost=lambda who, usd: charged.append((who, usd)),
    )
    episode = run(orchestrator.run(Task("t", "hello"), policy))
    assert episode.stop_reason == "policy_error"
    assert episode.router_cost_usd == pytest.approx(provider.true_cost(catalog), abs=MICRO / 1000)
    assert [who for who, _ in charged] == ["router"]
    assert sum(usd for _, usd in charged) == pytest.approx(episode.cost_usd)
