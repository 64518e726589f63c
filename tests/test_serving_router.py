"""The router behind the API: names, dial, metadata, streaming, explain, health, errors."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support_serving import PROFILES, FakeProvider, XRouterServer, small_catalog

from xrouter.provenance import repo_root

pytest.importorskip("litellm")

CATALOG = small_catalog()
HTTP = httpx.Client(timeout=30)
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def server(
    provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[XRouterServer]:
    folder = tmp_path_factory.mktemp("router")
    policy = {"kind": "baseline", "name": "agreement"}
    with XRouterServer(folder, provider, policy=policy, keepalive_s=0.3) as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(provider: FakeProvider) -> None:
    provider.reset()


def post(server: XRouterServer, path: str = "/chat/completions", **payload: Any) -> httpx.Response:
    given = {"model": "xrouter", "messages": HELLO, **payload}
    return HTTP.post(server.base + path, json=given, timeout=30)


def test_metadata_tells_who_answered_what_it_cost_and_how(server: XRouterServer) -> None:
    reply = post(server).json()
    meta = reply["router_metadata"]
    assert meta["model_used"] in CATALOG
    assert meta["total_cost"] == pytest.approx(meta["router_cost"] + meta["target_models_cost"])
    assert meta["routing_strategy"] == "select_response"
    assert 2 <= meta["turns_used"] <= 3
    assert meta["world"] == "live"
    assert meta["total_time"] > 0
    history = meta["call_history"]
    assert len(history) >= 2
    assert sum(c["cost"] for c in history) == pytest.approx(meta["target_models_cost"])
    assert reply["usage"]["prompt_tokens"] == sum(c["input_tokens"] for c in history)


def test_savings_are_told_against_the_dearest_and_the_best_single_model(
    server: XRouterServer,
) -> None:
    meta = post(server).json()["router_metadata"]
    for name in ("most_expensive", "best_single"):
        row = meta["saved_vs"][name]
        assert row["model"] == "gpt-4o"
        assert row["saved"] == pytest.approx(row["estimated_cost"] - meta["total_cost"])


def test_a_pool_models_name_passes_through(server: XRouterServer, provider: FakeProvider) -> None:
    response = post(server, model="gpt-4o")
    meta = response.json()["router_metadata"]
    assert (meta["model_used"], meta["routing_strategy"]) == ("gpt-4o", "pass_through")
    assert response.headers["x-xrouter-model"] == "gpt-4o"
    assert [e["model"] for e in provider.books()] == ["gpt-4o"]


def test_a_pass_through_does_not_fail_over_to_another_model(
    server: XRouterServer, provider: FakeProvider
) -> None:
    provider.control(faults={"gpt-4o": ["429"]})
    response = post(server, model="gpt-4o")
    assert (response.status_code, response.json()["error"]["code"]) == (429, "upstream_rate_limit")


def test_every_offered_name_is_listed_and_answers(server: XRouterServer) -> None:
    rows = HTTP.get(f"{server.base}/models").json()["data"]
    names = [row["id"] for row in rows]
    assert names == [*PROFILES, *CATALOG.models]
    for name in PROFILES:
        assert post(server, model=name).json()["model"] == name
    weights = {row["id"]: row.get("cost_weight") for row in rows}
    assert weights["xrouter-economy"] > weights["xrouter"] > weights["xrouter-quality"]


def test_the_dial_travels_in_the_body(server: XRouterServer, provider: FakeProvider) -> None:
    dial = {"lambda": 0.7, "pool": ["gpt-4o-mini"], "max_turns": 2}
    meta = post(server, router=dial).json()["router_metadata"]
    assert meta["cost_weight"] == 0.7
    assert {e["model"] for e in provider.books()} == {"gpt-4o-mini"}
    post(server, router={"pool": "cheap", "mode": "simple"})
    assert provider.books()[-1]["model"] in CATALOG.pool("cheap")


@pytest.mark.parametrize(
    ("dial", "where"),
    [
        ({"lambda": -1}, "router.lambda"),
        ({"pool": ["nobody"]}, "router.pool"),
        ({"pool": []}, "router.pool"),
        ({"lamda": 1}, "router.lamda"),
        ({"max_cost_usd": 0}, "router.max_cost_usd"),
    ],
)
def test_a_bad_dial_is_a_400_that_names_the_field(
    server: XRouterServer, dial: dict[str, Any], where: str
) -> None:
    response = post(server, router=dial)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == where


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"model": 1}',
        b'{"model": "xrouter", "messages": "hi"}',
        b'{"model": "xrouter", "messages": [{"role": "alien", "content": "x"}]}',
        b'{"model": "xrouter", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "xrouter", "temperature": NaN, "messages": []}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_no_request_is_a_400_in_openai_form(
    server: XRouterServer, raw: bytes
) -> None:
    response = HTTP.post(f"{server.base}/chat/completions", content=raw)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_unknown_paths_and_methods_have_the_envelope_too(server: XRouterServer) -> None:
    for response, status in (
        (HTTP.get(f"{server.root}/nowhere"), 404),
        (HTTP.delete(f"{server.base}/models"), 405),
    ):
        assert response.status_code == status
        assert set(response.json()) == {"error"}


def test_the_request_id_is_the_clients_or_a_new_one(server: XRouterServer) -> None:
    url = f"{server.root}/health/live"
    assert HTTP.get(url, headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    odd = HTTP.get(url, headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert odd.startswith("req_")


def test_a_keyless_server_answers_to_localhost_only(server: XRouterServer) -> None:
    evil = HTTP.get(f"{server.root}/", headers={"host": "evil.example"})
    assert evil.status_code == 403
    assert HTTP.get(f"{server.root}/", headers={"host": f"localhost:{server.port}"}).is_success


def test_status_health_and_metrics_tell_of_the_server(server: XRouterServer) -> None:
    status = HTTP.get(f"{server.root}/").json()
    assert (status["world"], status["policy"], status["status"]) == ("live", "agreement", "ready")
    assert HTTP.get(f"{server.root}/health/ready").json() == {"status": "ready"}
    post(server)
    text = HTTP.get(f"{server.root}/metrics").text
    assert 'xrouter_requests_total{model="xrouter",state="answered"}' in text
    assert "xrouter_cost_usd_total" in text
    assert 'route="/v1/chat/completions",status="200"' in text


def test_explain_says_what_would_be_called_and_calls_nobody(
    server: XRouterServer, provider: FakeProvider
) -> None:
    told = post(server, "/router/explain").json()
    assert told["object"] == "router.explanation"
    assert len(told["would_call"]) == 2
    assert told["expected_cost"] > 0
    assert not told["billed"]
    assert provider.books() == []


async def stream_times(server: XRouterServer, payload: dict[str, Any]) -> list[tuple[float, str]]:
    """(seconds since the start, line) of a stream, blank lines left out."""
    out: list[tuple[float, str]] = []
    started = time.monotonic()
    async with (
        httpx.AsyncClient(timeout=60) as client,
        client.stream("POST", f"{server.base}/chat/completions", json=payload) as response,
    ):
        async for line in response.aiter_lines():
            if line:
                out.append((time.monotonic() - started, line))
    return out


def test_tokens_of_the_final_call_are_streamed_as_they_come(
    server: XRouterServer, provider: FakeProvider
) -> None:
    provider.control(token_delay_s=0.1)
    payload = {"model": "gpt-4o", "messages": HELLO, "stream": True}
    lines = asyncio.run(stream_times(server, payload))
    content = [(t, x) for t, x in lines if '"content":"' in x and '"content":""' not in x]
    assert content[-1][0] - content[0][0] > 1.0, "18 tokens, a tenth of a second each"


def test_comments_keep_the_connection_alive_while_the_router_works(
    server: XRouterServer, provider: FakeProvider
) -> None:
    provider.control(token_delay_s=0.06)
    payload = {"model": "xrouter", "messages": HELLO, "stream": True}
    lines = [line for _, line in asyncio.run(stream_times(server, payload))]
    assert lines[0] == ": routing"
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["router_metadata"]["routing_strategy"] == "select_response"


def test_an_error_before_the_first_token_has_an_http_status(
    server: XRouterServer, provider: FakeProvider
) -> None:
    provider.control(rate=1.0, kinds=["500"])
    response = post(server, model="gpt-4o", stream=True)
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_error"


def test_an_error_after_the_first_token_is_an_event(
    server: XRouterServer, provider: FakeProvider
) -> None:
    provider.control(rate=1.0, kinds=["cut"])
    response = post(server, model="gpt-4o", stream=True)
    assert response.status_code == 200
    parts = [x.removeprefix("data: ") for x in response.text.split("\n\n") if x]
    assert parts[-1] == "[DONE]"
    assert json.loads(parts[-2])["error"]["type"] == "api_error"


def test_history_is_trimmed_to_the_window_of_the_model_that_is_called(
    server: XRouterServer, provider: FakeProvider
) -> None:
    long = [
        {"role": r, "content": f"{i} " + "word " * 400}
        for i in range(60)
        for r in ("user", "assistant")
    ]
    messages = [{"role": "system", "content": "stay"}, *long, *HELLO]
    for model in ("gpt-4o", "gpt-4.1-mini"):
        assert post(server, model=model, messages=messages).status_code == 200
    whole, trimmed = provider.books()
    assert len(whole["request"]["messages"]) == len(messages)
    sent = trimmed["request"]["messages"]
    assert (sent[0]["content"], sent[-1]["content"]) == ("stay", "hello")
    assert 4 < len(sent) < len(messages)
    assert trimmed["prompt_tokens"] < CATALOG["gpt-4.1-mini"].context_window


def test_a_deadline_ends_a_request_with_what_there_is_or_a_408(
    server: XRouterServer, provider: FakeProvider
) -> None:
    provider.control(token_delay_s=0.2)
    started = time.monotonic()
    response = post(server, model="gpt-4o", router={"timeout_s": 0.5})
    assert time.monotonic() - started < 3
    assert (response.status_code, response.json()["error"]["code"]) == (408, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"


def test_a_disconnect_stops_the_provider(server: XRouterServer, provider: FakeProvider) -> None:
    provider.control(token_delay_s=0.1)
    with pytest.raises(httpx.ReadTimeout):
        HTTP.post(
            f"{server.base}/chat/completions",
            json={"model": "gpt-4o", "messages": [{"role": "user", "content": "[[words=300]]"}]},
            timeout=0.8,
        )
    time.sleep(0.5)
    (entry,) = provider.books()
    first = entry["output_tokens"]
    time.sleep(0.5)
    assert provider.books()[0]["output_tokens"] == first < 30


def test_shutdown_drains_what_ends_in_time_and_bills_what_it_has_to_cut(
    tmp_path: Path, provider: FakeProvider
) -> None:
    provider.control(token_delay_s=0.1)
    with XRouterServer(tmp_path, provider, drain_s=3) as made:
        short = {"model": "gpt-4o", "messages": HELLO, "stream": True}
        endless = [{"role": "user", "content": "[[words=300]]"}]

        async def main() -> list[Any]:
            payloads = (short, {**short, "messages": endless})
            streams = [asyncio.create_task(stream_times(made, p)) for p in payloads]
            await asyncio.sleep(0.8)
            made.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            with suppress(httpx.TransportError):  # uvicorn may have closed its socket already
                assert HTTP.get(f"{made.root}/health/ready").status_code == 503
            return await asyncio.gather(*streams, return_exceptions=True)

        drained, cut = asyncio.run(main())
        assert drained[-1][1] == "data: [DONE]"
        assert isinstance(cut, Exception) or cut[-1][1] != "data: [DONE]"
        made.process.wait(10)
        token = CATALOG["gpt-4o"].cost(0, 1)
        with made.ledger() as ledger:
            assert ledger.discrepancies() == []
            assert ledger.total_usd() == pytest.approx(
                provider.true_cost(CATALOG), abs=2.01 * token
            )
    finished = [e["finished"] for e in provider.books()]
    assert finished == [True, False]


@pytest.fixture(scope="module")
def hosted(
    provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[XRouterServer]:
    """A server whose router is itself a chat model behind the provider."""
    policy = {
        "kind": "chat",
        "model": "openai/gpt-4o-mini",
        "api_base": provider.base,
        "timeout_s": 2.0,
    }
    folder = tmp_path_factory.mktemp("hosted")
    with XRouterServer(folder, provider, policy=policy, pool="gpt-4.1-nano,gpt-4o") as running:
        yield running


CALL_A_MODEL = [{"role": "user", "content": "[[tool]] please"}]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_model_can_be_the_router_and_its_tokens_are_billed(
    hosted: XRouterServer, provider: FakeProvider, stream: bool
) -> None:
    response = post(hosted, messages=CALL_A_MODEL, stream=stream)
    reply = json.loads(response.text.split("data: ")[-2]) if stream else response.json()
    meta = reply["router_metadata"]
    assert meta["policy"] == "chat:gpt-4o-mini"
    assert meta["routing_strategy"] == "synthesis"
    assert meta["model_used"] == "router"
    assert meta["router_cost"] > 0
    assert meta["total_cost"] == pytest.approx(provider.true_cost(CATALOG), abs=1e-9)
    called = [e for e in provider.books() if e["model"] == "gpt-4.1-nano"]
    assert called[0]["request"]["messages"][0] == {"role": "system", "content": "stone"}


def test_a_router_that_is_down_is_stood_in_for(
    hosted: XRouterServer, provider: FakeProvider
) -> None:
    provider.control(faults={"gpt-4o-mini": ["500"] * 4})
    meta = post(hosted).json()["router_metadata"]
    assert meta["model_used"] == "gpt-4.1-nano"
    assert meta["total_cost"] == pytest.approx(provider.true_cost(CATALOG), abs=1e-9)


def test_explain_bills_a_router_that_a_provider_is_paid_for(
    hosted: XRouterServer, provider: FakeProvider
) -> None:
    told = post(hosted, "/router/explain", messages=CALL_A_MODEL).json()
    assert told["billed"]
    assert [c["model"] for c in told["would_call"]] == ["gpt-4.1-nano"]
    assert told["router_cost"] == pytest.approx(provider.true_cost(CATALOG), abs=1e-9)
    assert [e["model"] for e in provider.books()] == ["gpt-4o-mini"]


def test_a_budget_holds_for_the_routers_own_tokens_too(
    hosted: XRouterServer, provider: FakeProvider
) -> None:
    with hosted.ledger() as ledger:
        secret, key = ledger.create_key("small", budget_usd=0.02)
    statuses = []
    for _ in range(40):
        body = {"model": "xrouter", "messages": CALL_A_MODEL}
        response = HTTP.post(
            f"{hosted.base}/chat/completions",
            json=body,
            headers={"authorization": f"Bearer {secret}"},
            timeout=30,
        )
        statuses.append(response.status_code)
        if response.status_code == 402:
            break
    with hosted.ledger() as ledger:
        state = next(k for k in ledger.list_keys() if k.id == key.id)
    assert state.spent_usd <= 0.02
    assert set(statuses) <= {200, 402}


@pytest.mark.skipif(
    not (repo_root() / "checkpoints" / "router-cpu" / "router.json").is_file(),
    reason="the trained checkpoint is not in this checkout",
)
def test_the_default_config_serves_the_trained_router_in_the_simulated_world(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch")
    config = yaml.safe_load((repo_root() / "configs" / "serve.yaml").read_text())
    kept = {k: config[k] for k in ("policy", "profiles", "pool", "live")}
    with XRouterServer(tmp_path, **kept) as made:
        replies = [post(made, model=name).json() for name in config["profiles"]]
        greeting = post(made, messages=[{"role": "user", "content": "thanks!"}]).json()
    for reply in [*replies, greeting]:
        assert reply["router_metadata"]["world"] == "simulated"
        assert reply["router_metadata"]["policy"].startswith("xrouter")
        assert reply["choices"][0]["message"]["content"]
