"""Keys, budgets, rate limits, and the ledger of what every request cost.

Money is kept as whole picodollars (10⁻¹² USD), so that sums are exact: a price of $0.0375 per
million tokens is 37,500 of them per token. A request reserves the most it can cost before it
starts, and settles for what it did cost when it ends, however it ends; between the two the money
is spoken for, so concurrent requests cannot overrun a budget together.

SQLite for one server, PostgreSQL for several that share a ledger.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa

from xrouter.serving.database import charges, create_engine, keys, metadata, requests

P = ParamSpec("P")
R = TypeVar("R")
KEY_PREFIX = "xr-"
PICO = 10**12
WINDOW_S = 60.0
CLOSED_STATES = ("answered", "failed", "cancelled", "lost")


class Refused(Exception):
    """A request that may not start. ``retry_after_s`` is set where waiting helps."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as far as it may be shown; money in USD, None: no limit."""

    id: str
    name: str
    shown: str
    budget_usd: float | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    spent_usd: float
    reserved_usd: float
    created: float
    revoked: float | None


@dataclass(frozen=True, slots=True)
class Charge:
    """One line of a bill: ``model`` is a catalog id, or ``router``."""

    model: str
    cost_usd: float
    input_tokens: int = 0
    output_tokens: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Opening:
    """What the ledger is told of a request before it starts. ``reserve_usd`` is the most it can
    cost; with less than ``least_usd`` left in the budget it is refused."""

    id: str
    model: str
    world: str
    key_id: str | None = None
    streamed: bool = False
    reserve_usd: float = 0.0
    least_usd: float = 0.0
    lifetime_s: float = 600.0


def pico(usd: float) -> int:
    """USD as whole picodollars."""
    return round(usd * PICO)


class Ledger:
    """The database. Every method is one transaction, safe to call from any thread.

    ``url`` is an SQLAlchemy URL. Raises ValueError for one that cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        metadata.create_all(self.engine)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        with self.engine.begin() as connection:
            yield connection

    def create_key(
        self,
        name: str,
        *,
        budget_usd: float | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> tuple[str, Key]:
        """A new key: the secret, which is kept nowhere, and what is stored of it."""
        for label, value in (
            ("budget_usd", budget_usd),
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ):
            if value is not None and not 0 < value < 1e6:
                raise ValueError(f"{label}={value}; must lie between 0 and 1,000,000")
        if not name.strip() or len(name) > 200:
            raise ValueError(f"name={name[:50]!r}; must have 1 to 200 characters")
        secret = KEY_PREFIX + secrets.token_urlsafe(32)
        row = {
            "id": secrets.token_hex(6),
            "name": name,
            "shown": secret[:7] + "…",
            "digest": _digest(secret),
            "budget": None if budget_usd is None else pico(budget_usd),
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "created": time.time(),
        }
        with self._transaction() as db:
            db.execute(keys.insert().values(**row))
            return secret, _key(db.execute(keys.select().where(keys.c.id == row["id"])).one())

    def find_key(self, secret: str) -> Key | None:
        """The key that is not revoked and has this secret."""
        wanted = sa.and_(keys.c.digest == _digest(secret), keys.c.revoked.is_(None))
        with self._transaction() as db:
            row = db.execute(keys.select().where(wanted)).one_or_none()
        return _key(row) if row else None

    def list_keys(self) -> list[Key]:
        with self._transaction() as db:
            return [_key(r) for r in db.execute(keys.select().order_by(keys.c.created))]

    def revoke_key(self, ident: str) -> Key:
        """Revoke by id. Raises KeyError for an unknown or ambiguous one."""
        with self._transaction() as db:
            rows = db.execute(keys.select().where(keys.c.id.startswith(ident))).all()
            if len(rows) != 1 or not ident:
                raise KeyError(f"{len(rows) if ident else 0} keys have an id that begins {ident!r}")
            where = keys.c.id == rows[0].id
            db.execute(keys.update().where(where).values(revoked=time.time()))
            return _key(db.execute(keys.select().where(where)).one())

    def open(self, opening: Opening) -> float | None:
        """Admit a request: checks rates, sets money aside. Returns the USD reserved, which may be
        less than asked for where the budget has less; None: there is no budget to keep.

        Raises :class:`Refused` with code ``insufficient_quota``, ``budget_reserved`` or
        ``rate_limit_exceeded``.
        """
        now = time.time()
        with self._transaction() as db:
            granted = 0
            limited = False
            if opening.key_id is not None:
                locked = keys.select().where(keys.c.id == opening.key_id).with_for_update()
                key = db.execute(locked).one()
                _check_rates(db, key, now)
                limited = key.budget is not None
                granted = _grant(key, opening) if limited else 0
                db.execute(
                    keys.update()
                    .where(keys.c.id == opening.key_id)
                    .values(reserved=keys.c.reserved + granted)
                )
            db.execute(
                requests.insert().values(
                    id=opening.id,
                    key_id=opening.key_id,
                    model=opening.model[:200],
                    world=opening.world,
                    state="open",
                    streamed=opening.streamed,
                    reserved=granted,
                    created=now,
                    expires=now + opening.lifetime_s,
                )
            )
        return granted / PICO if limited else None

    def settle(
        self, request_id: str, lines: Sequence[Charge], *, state: str, strategy: str = ""
    ) -> float:
        """Bill a request and free what it had reserved. Returns its cost in USD.

        Settling twice changes nothing the second time.
        """
        with self._transaction() as db:
            return _close(db, request_id, lines, state, strategy) / PICO

    def close_lost(self, now: float | None = None) -> int:
        """Free the reservations of requests whose server died with them; returns how many.

        They are billed nothing, since nobody knows what they consumed.
        """
        late = sa.and_(
            requests.c.state == "open", requests.c.expires < (time.time() if now is None else now)
        )
        with self._transaction() as db:
            lost = db.execute(sa.select(requests.c.id).where(late)).scalars().all()
            for ident in lost:
                _close(db, ident, (), "lost", "")
        return len(lost)

    def request(self, request_id: str) -> dict[str, Any] | None:
        """One request with its charges, money in USD."""
        with self._transaction() as db:
            row = db.execute(requests.select().where(requests.c.id == request_id)).one_or_none()
            if row is None:
                return None
            lines = db.execute(charges.select().where(charges.c.request_id == request_id)).all()
        found = _usd(row)
        found["charges"] = [_usd(line) for line in lines]
        return found

    def spend(self, by: str = "key") -> list[dict[str, Any]]:
        """Totals by ``key``, ``model`` (who was paid) or ``day`` (UTC), dearest first."""
        with self._transaction() as db:
            rows = db.execute(_spend_query(by)).all()
        return [
            {by: r.label or "(no key)", "requests": r.requests, "cost_usd": int(r.cost) / PICO}
            for r in rows
        ]

    def total_usd(self) -> float:
        """Sum of all charges."""
        with self._transaction() as db:
            total = db.execute(sa.select(sa.func.sum(charges.c.cost))).scalar()
            return int(total or 0) / PICO

    def discrepancies(self) -> list[str]:
        """What does not add up: requests against charges, keys against requests."""
        summed = (
            sa.select(charges.c.request_id, sa.func.sum(charges.c.cost).label("cost"))
            .group_by(charges.c.request_id)
            .subquery()
        )
        paid = sa.func.coalesce(summed.c.cost, 0)
        wrong_requests = (
            sa.select(requests.c.id)
            .outerjoin(summed, summed.c.request_id == requests.c.id)
            .where(requests.c.state != "open", requests.c.cost != paid)
        )
        spent = sa.func.coalesce(sa.func.sum(requests.c.cost), 0)
        wrong_keys = (
            sa.select(keys.c.id)
            .outerjoin(requests, requests.c.key_id == keys.c.id)
            .group_by(keys.c.id, keys.c.spent)
            .having(keys.c.spent != spent)
        )
        with self._transaction() as db:
            bad = [f"request {i}" for i in db.execute(wrong_requests).scalars()]
            return bad + [f"key {i}" for i in db.execute(wrong_keys).scalars()]


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _check_rates(db: sa.Connection, key: Any, now: float) -> None:
    recent = sa.and_(requests.c.key_id == key.id, requests.c.created > now - WINDOW_S)
    if key.requests_per_minute is not None:
        times = sa.select(requests.c.created).where(recent).order_by(requests.c.created.desc())
        newest = db.execute(times.limit(key.requests_per_minute)).scalars().all()
        if len(newest) >= key.requests_per_minute:
            raise Refused(
                "rate_limit_exceeded",
                f"more than {key.requests_per_minute} requests per minute",
                max(0.0, newest[-1] + WINDOW_S - now),
            )
    if key.tokens_per_minute is not None:
        used = db.execute(sa.select(sa.func.sum(requests.c.tokens)).where(recent)).scalar() or 0
        if used >= key.tokens_per_minute:
            raise Refused(
                "rate_limit_exceeded", f"more than {key.tokens_per_minute} tokens per minute", 10.0
            )


def _grant(key: Any, opening: Opening) -> int:
    """Picodollars to set aside for a request of a key with a budget."""
    least = max(1, pico(opening.least_usd))
    unspent = key.budget - key.spent
    if unspent < least:
        raise Refused(
            "insufficient_quota",
            f"the key's budget of ${key.budget / PICO:g} has ${max(0, unspent) / PICO:.6f} left",
        )
    free = unspent - key.reserved
    if free < least:
        raise Refused(
            "budget_reserved",
            "the rest of the key's budget is reserved by requests that are running",
            2.0,
        )
    return min(max(pico(opening.reserve_usd), least), free)


def _close(
    db: sa.Connection, request_id: str, lines: Iterable[Charge], state: str, strategy: str
) -> int:
    """Settle one request inside a transaction; returns its cost in picodollars."""
    if state not in CLOSED_STATES:
        raise ValueError(f"state={state!r}; use one of {CLOSED_STATES}")
    locked = requests.select().where(requests.c.id == request_id).with_for_update()
    row = db.execute(locked).one()
    if row.state not in ("open", "lost") or state == row.state:
        return int(row.cost)
    freed = row.reserved if row.state == "open" else 0  # a lost request that turns up after all
    rows: list[dict[str, Any]] = [
        {
            "request_id": request_id,
            "model": line.model[:200],
            "cost": pico(line.cost_usd),
            "input_tokens": line.input_tokens,
            "output_tokens": line.output_tokens,
            "estimated": line.estimated,
        }
        for line in lines
    ]
    cost = sum(r["cost"] for r in rows)
    if rows:
        db.execute(charges.insert(), rows)
    db.execute(
        requests.update()
        .where(requests.c.id == request_id)
        .values(
            state=state,
            strategy=strategy,
            cost=cost,
            tokens=sum(r["input_tokens"] + r["output_tokens"] for r in rows),
            finished=time.time(),
        )
    )
    if row.key_id is not None:
        db.execute(
            keys.update()
            .where(keys.c.id == row.key_id)
            .values(spent=keys.c.spent + cost, reserved=keys.c.reserved - freed)
        )
    return cost


def _spend_query(by: str) -> sa.Select[Any]:
    if by == "key":
        label: Any = keys.c.name
        source: Any = requests.outerjoin(keys, keys.c.id == requests.c.key_id)
        cost, count = requests.c.cost, sa.func.count(requests.c.id)
    elif by == "model":
        label, source, cost = charges.c.model, charges, charges.c.cost
        count = sa.func.count(sa.distinct(charges.c.request_id))
    elif by == "day":
        days = sa.cast(sa.func.floor(requests.c.created / 86400), sa.BigInteger)
        label, source, cost = days, requests, requests.c.cost
        count = sa.func.count(requests.c.id)
    else:
        raise ValueError(f"by={by!r}; use 'key', 'model' or 'day'")
    total = sa.func.coalesce(sa.func.sum(cost), 0).label("cost")
    return (
        sa.select(label.label("label"), count.label("requests"), total)
        .select_from(source)
        .group_by(label)
        .order_by(sa.desc("cost"))
    )


def _usd(row: Any) -> dict[str, Any]:
    """A row as a dict, its money columns as ``*_usd``."""
    out = dict(row._mapping)
    for name in ("cost", "reserved"):
        if name in out:
            out[f"{name}_usd"] = out.pop(name) / PICO
    return out


def _key(row: Any) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        shown=row.shown,
        budget_usd=None if row.budget is None else row.budget / PICO,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        spent_usd=row.spent / PICO,
        reserved_usd=row.reserved / PICO,
        created=row.created,
        revoked=row.revoked,
    )


class AsyncLedger:
    """A :class:`Ledger` for an event loop: its transactions run in threads of their own, one for
    SQLite, which has one writer, and several for PostgreSQL."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        workers = 1 if ledger.is_sqlite else 8
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="ledger")

    async def run(self, method: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Await ``method(*args)``, which should be one of the ledger's.

        Once begun it is completed, even where the caller is cancelled meanwhile.
        """
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, partial(method, *args, **kwargs))
        return await asyncio.shield(work)

    def close(self) -> None:
        self._threads.shutdown(wait=True)
        self.ledger.close()
