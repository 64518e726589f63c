"""What is billed, and to whom: over real HTTP, against a provider that keeps its own books."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support_serving import CLI, FakeProvider, XRouterServer, postgres_url, small_catalog

pytest.importorskip("litellm")

from xrouter.serving.accounts import Ledger, pico

__all__ = ["postgres_url"]  # a fixture

CATALOG = small_catalog()
HTTP = httpx.Client(timeout=30)
NANO = 1e-9


@pytest.fixture(scope="module")
def provider() -> Iterator[FakeProvider]:
    with FakeProvider() as running:
        yield running


@pytest.fixture(scope="module")
def server(
    provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[XRouterServer]:
    folder = tmp_path_factory.mktemp("money")
    with XRouterServer(folder, provider, keepalive_s=0.3) as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(provider: FakeProvider) -> None:
    provider.reset()


def body(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "xrouter", "messages": [{"role": "user", "content": text}], **more}


def post(server: XRouterServer, payload: dict[str, Any], key: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"{server.base}/chat/completions"
    return HTTP.post(url, json=payload, headers=headers, timeout=30)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [x.removeprefix("data: ") for x in response.text.split("\n\n") if x[:5] == "data:"]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def settled(server: XRouterServer, ident: str, timeout_s: float = 10) -> dict[str, Any]:
    """The ledger's row of a request, once it is closed."""
    with server.ledger() as ledger:
        for _ in range(int(timeout_s / 0.05)):
            row = ledger.request(ident)
            if row is not None and row["state"] != "open":
                return row
            time.sleep(0.05)
    raise AssertionError(f"{ident} was not settled")


def make_key(server: XRouterServer, **limits: Any) -> tuple[str, str]:
    with server.ledger() as ledger:
        secret, key = ledger.create_key("test", **limits)
    return secret, key.id


def key_state(server: XRouterServer, ident: str) -> Any:
    with server.ledger() as ledger:
        return next(k for k in ledger.list_keys() if k.id == ident)


def test_reply_headers_ledger_and_provider_agree_on_the_cost(
    server: XRouterServer, provider: FakeProvider
) -> None:
    response = post(server, body())
    reply = response.json()
    cost = reply["router_metadata"]["total_cost"]
    assert cost == pytest.approx(provider.true_cost(CATALOG), abs=NANO)
    assert float(response.headers["x-xrouter-cost"]) == pytest.approx(cost, abs=NANO)
    row = settled(server, reply["id"])
    assert pico(row["cost_usd"]) == pico(cost)
    assert row["state"] == "answered"
    assert sum(pico(c["cost_usd"]) for c in row["charges"]) == pico(cost)


def test_a_streamed_request_costs_what_a_whole_one_costs(server: XRouterServer) -> None:
    whole = post(server, body("same question")).json()
    chunks = events(post(server, body("same question", stream=True)))
    streamed = chunks[-1]["router_metadata"]
    assert streamed["total_cost"] == whole["router_metadata"]["total_cost"] > 0
    assert pico(settled(server, chunks[0]["id"])["cost_usd"]) == pico(streamed["total_cost"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["429", "500", "cut", "early_eof", "invalid_json", "usage_zero"])
def test_a_failed_over_request_is_billed_for_every_attempt(
    server: XRouterServer, provider: FakeProvider, fault: str, stream: bool
) -> None:
    provider.control(faults={"gpt-4.1-nano": [fault]})
    response = post(server, body(stream=stream))
    assert response.status_code == 200
    reply = events(response)[-1] if stream else response.json()
    assert reply["router_metadata"]["total_cost"] == pytest.approx(
        provider.true_cost(CATALOG), abs=NANO
    )
    assert pico(settled(server, reply["id"])["cost_usd"]) == pico(
        reply["router_metadata"]["total_cost"]
    )


def test_a_request_without_an_answer_is_billed_for_what_its_attempts_consumed(
    server: XRouterServer, provider: FakeProvider
) -> None:
    provider.control(rate=1.0, kinds=["cut"])
    response = post(server, body())
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_error"
    assert float(response.headers["x-xrouter-cost"]) == pytest.approx(
        provider.true_cost(CATALOG), abs=NANO
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_is_billed_for_what_had_come(
    server: XRouterServer, provider: FakeProvider, stream: bool
) -> None:
    provider.control(drip_s=0.15)
    before = total(server)

    async def main() -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            payload = body("go [[fault=drip]] [[words=100]]", stream=stream)
            call = asyncio.create_task(client.post(f"{server.base}/chat/completions", json=payload))
            await asyncio.sleep(1.4)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    asyncio.run(main())
    time.sleep(1.0)
    (entry,) = provider.books()
    assert not entry["finished"]
    assert 0 < entry["output_tokens"] < 100
    token = CATALOG["gpt-4.1-nano"].cost(0, 1)
    billed = total(server) - before
    assert billed == pytest.approx(provider.true_cost(CATALOG), abs=1.01 * token)
    with server.ledger() as ledger:
        assert ledger.discrepancies() == []


def total(server: XRouterServer) -> float:
    with server.ledger() as ledger:
        return ledger.total_usd()


def test_a_budget_is_not_overrun_by_many_requests_at_once(
    server: XRouterServer, provider: FakeProvider
) -> None:
    budget = 0.002
    secret, ident = make_key(server, budget_usd=budget)
    provider.control(token_delay_s=0.002)

    async def one(client: httpx.AsyncClient, number: int) -> httpx.Response:
        dial = {"max_cost_usd": 0.0006}
        payload = body(f"{number} [[words=1500]]", stream=number % 2 == 0, router=dial)
        headers = {"authorization": f"Bearer {secret}"}
        return await client.post(f"{server.base}/chat/completions", json=payload, headers=headers)

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(one(client, i) for i in range(16)))

    statuses = [r.status_code for r in asyncio.run(main())]
    assert 200 in statuses
    assert set(statuses) <= {200, 402, 429}
    state = key_state(server, ident)
    assert 0 < pico(state.spent_usd) <= pico(budget)
    assert state.reserved_usd == 0
    assert provider.true_cost(CATALOG) <= budget + NANO


def test_a_spent_budget_is_402_and_the_rest_of_one_is_429(server: XRouterServer) -> None:
    secret, ident = make_key(server, budget_usd=0.00001)
    refused = post(server, body(), secret)
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "insufficient_quota")
    secret, ident = make_key(server, budget_usd=0.5)
    with server.ledger() as ledger:
        from xrouter.serving.accounts import Opening

        ledger.open(Opening("held", "m", "live", ident, reserve_usd=0.5))
    waiting = post(server, body(), secret)
    assert (waiting.status_code, waiting.json()["error"]["code"]) == (429, "budget_reserved")
    assert int(waiting.headers["retry-after"]) >= 1
    with server.ledger() as ledger:
        ledger.settle("held", [], state="cancelled")
    assert post(server, body(), secret).status_code == 200


def test_requests_per_minute_are_429_with_retry_after(server: XRouterServer) -> None:
    secret, _ = make_key(server, requests_per_minute=2)
    statuses = [post(server, body(), secret).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = post(server, body(), secret)
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60


def test_a_bound_on_one_request_holds(server: XRouterServer, provider: FakeProvider) -> None:
    dial = {"max_cost_usd": 0.0006}
    reply = post(server, body("[[words=3000]]", router=dial)).json()
    assert reply["choices"][0]["finish_reason"] == "length"
    assert 0.0002 < reply["router_metadata"]["total_cost"] <= 0.0006
    refused = post(server, body(router={"max_cost_usd": 1e-7}))
    assert (refused.status_code, refused.json()["error"]["code"]) == (402, "max_cost_exceeded")


@pytest.mark.parametrize("key", ["xr-wrong", "xr-"])
def test_a_wrong_key_is_401_even_where_none_is_needed(server: XRouterServer, key: str) -> None:
    refused = post(server, body(), key)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"


def test_a_revoked_key_is_401(server: XRouterServer) -> None:
    secret, ident = make_key(server)
    assert post(server, body(), secret).status_code == 200
    assert "revoked" in server.command("keys", "revoke", ident[:8])
    assert post(server, body(), secret).status_code == 401


def test_keys_and_spend_are_managed_from_the_command_line(server: XRouterServer) -> None:
    out = server.command("keys", "create", "--name", "bob", "--budget", "1.5", "--rpm", "100")
    secret = out.splitlines()[0]
    assert post(server, body(), secret).status_code == 200
    listed = server.command("keys", "list")
    assert "bob" in listed
    assert "$1.50" in listed
    assert secret not in listed
    assert "bob" in server.command("spend")
    assert "gpt-4.1-nano" in server.command("spend", "--by", "model")
    assert time.strftime("%Y-%m-", time.gmtime()) in server.command("spend", "--by", "day")


def test_no_secret_is_in_the_servers_log(server: XRouterServer) -> None:
    secret, _ = make_key(server)
    post(server, body(), secret)
    assert secret not in server.log.read_text()


def test_any_address_but_loopback_demands_keys(tmp_path: Path, provider: FakeProvider) -> None:
    made = XRouterServer(tmp_path, provider, host="0.0.0.0")
    command = [*CLI, "serve", "--config", str(made.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "API keys are demanded here and there is none" in done.stderr
    secret = made.command("keys", "create", "--name", "me").splitlines()[0]
    with made:
        assert post(made, body()).status_code == 401
        assert HTTP.get(f"{made.base}/models").status_code == 401
        assert HTTP.get(f"{made.root}/metrics").status_code == 401
        assert HTTP.get(f"{made.root}/health/ready").status_code == 200
        assert post(made, body(), secret).status_code == 200


def test_a_config_may_not_open_an_address_without_keys(tmp_path: Path) -> None:
    made = XRouterServer(tmp_path, host="0.0.0.0", require_keys=False)
    command = [*CLI, "serve", "--config", str(made.config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "require_keys may not be false" in done.stderr


@pytest.mark.slow
def test_two_replicas_on_one_postgresql_cannot_overrun_a_budget_together(
    tmp_path: Path,
    provider: FakeProvider,
    postgres_url: str,
) -> None:
    budget = 0.002
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    provider.control(token_delay_s=0.002)
    with (
        XRouterServer(folders[0], provider, database=postgres_url) as one,
        XRouterServer(folders[1], provider, database=postgres_url) as two,
        Ledger(postgres_url) as ledger,
    ):
        secret, key = ledger.create_key("shared", budget_usd=budget)

        async def main() -> list[int]:
            async with httpx.AsyncClient(timeout=60) as client:
                payload = body("[[words=1500]]", router={"max_cost_usd": 0.0006})
                headers = {"authorization": f"Bearer {secret}"}
                urls = [f"{s.base}/chat/completions" for s in (one, two)] * 8
                calls = [client.post(u, json=payload, headers=headers) for u in urls]
                return [r.status_code for r in await asyncio.gather(*calls)]

        statuses = asyncio.run(main())
        state = next(k for k in ledger.list_keys() if k.id == key.id)
        assert ledger.discrepancies() == []
    assert 200 in statuses
    assert set(statuses) <= {200, 402, 429}
    assert 0 < pico(state.spent_usd) <= pico(budget)
    assert state.reserved_usd == 0
