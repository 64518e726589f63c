"""Keys, budgets, rate limits and the ledger, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_serving import postgres_url

sa = pytest.importorskip("sqlalchemy")

__all__ = ["postgres_url"]  # a fixture

from xrouter.serving.accounts import (  # noqa: E402
    KEY_PREFIX,
    AsyncLedger,
    Charge,
    Ledger,
    Opening,
    Refused,
    pico,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "sqlite":
        made = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    else:
        made = Ledger(request.getfixturevalue("postgres_url"))
        with made.engine.begin() as db:
            db.execute(sa.text("TRUNCATE charges, requests, api_keys"))
    yield made
    made.close()


def opening(ident: str, key_id: str | None = None, reserve: float = 0.0, **more: object) -> Opening:
    return Opening(ident, "xrouter", "live", key_id, reserve_usd=reserve, **more)  # type: ignore[arg-type]


def test_a_key_is_found_by_its_secret_until_it_is_revoked(ledger: Ledger) -> None:
    secret, key = ledger.create_key("ann", budget_usd=2.5)
    assert secret.startswith(KEY_PREFIX)
    found = ledger.find_key(secret)
    assert found is not None
    assert (found.id, found.budget_usd, found.spent_usd) == (key.id, 2.5, 0.0)
    assert ledger.find_key(secret + "x") is None
    assert ledger.revoke_key(key.id).revoked is not None
    assert ledger.find_key(secret) is None


def test_the_secret_is_nowhere_in_the_database(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.sqlite")
    secret, key = ledger.create_key("ann")
    ledger.close()
    content = b"".join(f.read_bytes() for f in tmp_path.iterdir())
    assert key.name.encode() in content
    assert secret.removeprefix(KEY_PREFIX)[4:].encode() not in content


def test_a_settled_request_costs_the_sum_of_its_charges_to_the_picodollar(ledger: Ledger) -> None:
    _, key = ledger.create_key("ann", budget_usd=1.0)
    assert ledger.open(opening("r1", key.id, 0.4)) == pytest.approx(0.4)
    assert ledger.list_keys()[0].reserved_usd == pytest.approx(0.4)
    lines = [Charge("router", 4e-8, 1, 0), Charge("gpt-5", 0.1234567891, 10, 5, estimated=True)]
    cost = ledger.settle("r1", lines, state="answered", strategy="select_response")
    assert pico(cost) == pico(4e-8) + pico(0.1234567891)
    after = ledger.list_keys()[0]
    assert (pico(after.spent_usd), after.reserved_usd) == (pico(cost), 0.0)
    row = ledger.request("r1")
    assert row is not None
    assert row["state"] == "answered"
    assert [c["model"] for c in row["charges"]] == ["router", "gpt-5"]
    assert row["tokens"] == 16
    assert ledger.discrepancies() == []


def test_settling_twice_bills_once(ledger: Ledger) -> None:
    _, key = ledger.create_key("ann", budget_usd=1.0)
    ledger.open(opening("r1", key.id, 0.4))
    first = ledger.settle("r1", [Charge("gpt-5", 0.1)], state="answered")
    assert ledger.settle("r1", [Charge("gpt-5", 0.3)], state="cancelled") == first
    assert ledger.total_usd() == pytest.approx(0.1)
    assert ledger.list_keys()[0].reserved_usd == 0.0


def test_a_spent_budget_refuses_for_good_and_a_reserved_one_for_now(ledger: Ledger) -> None:
    _, key = ledger.create_key("ann", budget_usd=1.0)
    ledger.open(opening("r1", key.id, 0.9, least_usd=0.01))
    assert ledger.open(opening("r2", key.id, 0.9, least_usd=0.01)) == pytest.approx(0.1)
    with pytest.raises(Refused) as refused:
        ledger.open(opening("r3", key.id, 0.9, least_usd=0.01))
    assert (refused.value.code, refused.value.retry_after_s) == ("budget_reserved", 2.0)
    ledger.settle("r1", [Charge("gpt-5", 0.9)], state="answered")
    ledger.settle("r2", [Charge("gpt-5", 0.1)], state="answered")
    with pytest.raises(Refused) as refused:
        ledger.open(opening("r4", key.id, 0.9, least_usd=0.01))
    assert (refused.value.code, refused.value.retry_after_s) == ("insufficient_quota", None)


def test_many_threads_cannot_overrun_a_budget_together(ledger: Ledger) -> None:
    _, key = ledger.create_key("ann", budget_usd=1.0)
    admitted: list[float] = []

    def one(number: int) -> None:
        try:
            granted = ledger.open(opening(f"r{number}", key.id, 0.07, least_usd=0.02))
        except Refused:
            return
        assert granted is not None
        admitted.append(granted)
        ledger.settle(f"r{number}", [Charge("gpt-5", granted)], state="answered")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(40)))
    after = ledger.list_keys()[0]
    assert pico(after.spent_usd) == sum(pico(a) for a in admitted) <= pico(1.0)
    assert after.spent_usd > 0.98
    assert after.reserved_usd == 0.0
    assert ledger.discrepancies() == []


def test_requests_per_minute_hold_under_concurrency(ledger: Ledger) -> None:
    _, key = ledger.create_key("ann", requests_per_minute=5)
    outcomes: list[str] = []
    waits: list[float] = []
    barrier = threading.Barrier(12)

    def one(number: int) -> None:
        barrier.wait()
        try:
            ledger.open(opening(f"r{number}", key.id))
            outcomes.append("open")
        except Refused as refused:
            waits.append(refused.retry_after_s or 0.0)
            outcomes.append(refused.code)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(one, range(12)))
    assert sorted(outcomes) == ["open"] * 5 + ["rate_limit_exceeded"] * 7
    assert all(0 < wait <= 60 for wait in waits)


def test_tokens_per_minute_refuse_after_the_limit(ledger: Ledger) -> None:
    _, key = ledger.create_key("ann", tokens_per_minute=100)
    ledger.open(opening("r1", key.id))
    ledger.settle("r1", [Charge("gpt-5", 0.1, 90, 20)], state="answered")
    with pytest.raises(Refused, match="tokens per minute"):
        ledger.open(opening("r2", key.id))


def test_a_lost_request_frees_its_reservation_and_is_billed_if_it_turns_up(ledger: Ledger) -> None:
    _, key = ledger.create_key("ann", budget_usd=1.0)
    ledger.open(opening("r1", key.id, 0.5, lifetime_s=0.0))
    ledger.open(opening("r2", key.id, 0.2))
    assert ledger.close_lost(time.time() + 1) == 1
    assert ledger.list_keys()[0].reserved_usd == pytest.approx(0.2)
    ledger.settle("r1", [Charge("gpt-5", 0.3)], state="answered")
    after = ledger.list_keys()[0]
    assert (after.spent_usd, after.reserved_usd) == (pytest.approx(0.3), pytest.approx(0.2))
    assert ledger.discrepancies() == []


def test_spend_is_grouped_by_key_model_and_day(ledger: Ledger) -> None:
    _, key = ledger.create_key("ann")
    ledger.open(opening("r1", key.id))
    ledger.open(opening("r2"))
    ledger.settle("r1", [Charge("gpt-5", 0.2), Charge("router", 0.1)], state="answered")
    ledger.settle("r2", [Charge("gpt-5", 0.5)], state="cancelled")
    by_key = {r["key"]: r["cost_usd"] for r in ledger.spend("key")}
    assert by_key == {"(no key)": pytest.approx(0.5), "ann": pytest.approx(0.3)}
    by_model = {r["model"]: (r["requests"], r["cost_usd"]) for r in ledger.spend("model")}
    assert by_model == {"gpt-5": (2, pytest.approx(0.7)), "router": (1, pytest.approx(0.1))}
    (day,) = ledger.spend("day")
    assert day["cost_usd"] == pytest.approx(0.8)
    with pytest.raises(ValueError, match="use 'key', 'model' or 'day'"):
        ledger.spend("moon")


def test_two_processes_share_one_sqlite_ledger(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    first, second = Ledger(url), Ledger(url)
    _, key = first.create_key("ann", budget_usd=1.0)
    first.open(opening("r1", key.id, 0.9, least_usd=0.2))
    with pytest.raises(Refused):
        second.open(opening("r2", key.id, 0.9, least_usd=0.2))
    second.settle("r1", [Charge("gpt-5", 0.1)], state="answered")
    assert second.open(opening("r2", key.id, 0.9, least_usd=0.2)) == pytest.approx(0.9)
    first.close()
    second.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.floats(0.001, 0.4), st.floats(0, 1)),
        max_size=12,
    )
)
def test_whatever_is_asked_for_spent_plus_reserved_stays_within_the_budget(
    asked: list[tuple[float, float]],
) -> None:
    ledger = Ledger("sqlite://")
    _, key = ledger.create_key("ann", budget_usd=1.0)
    for number, (reserve, share) in enumerate(asked):
        try:
            granted = ledger.open(opening(f"r{number}", key.id, reserve))
        except Refused:
            continue
        assert granted is not None
        after = ledger.list_keys()[0]
        assert pico(after.spent_usd) + pico(after.reserved_usd) <= pico(1.0)
        ledger.settle(f"r{number}", [Charge("m", granted * share)], state="answered")
    assert ledger.discrepancies() == []
    ledger.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [("mysql://h/db", "not supported"), ("nonsense", "not a database URL")],
)
def test_a_database_url_that_cannot_be_used_is_refused_by_name(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ledger(url)


@pytest.mark.parametrize(
    "limits", [{"budget_usd": 0}, {"budget_usd": float("nan")}, {"requests_per_minute": -1}]
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie between"):
        Ledger("sqlite://").create_key("ann", **limits)  # type: ignore[arg-type]


def test_a_transaction_begun_by_a_cancelled_caller_is_completed(tmp_path: Path) -> None:
    import asyncio

    async def main() -> float:
        ledger = AsyncLedger(Ledger(f"sqlite:///{tmp_path}/ledger.sqlite"))
        await ledger.run(ledger.ledger.open, opening("r1"))
        settle = asyncio.ensure_future(
            ledger.run(ledger.ledger.settle, "r1", [Charge("m", 0.25)], state="cancelled")
        )
        await asyncio.sleep(0)
        settle.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settle
        total = await ledger.run(ledger.ledger.total_usd)
        ledger.close()
        return total

    assert asyncio.run(main()) == pytest.approx(0.25)
