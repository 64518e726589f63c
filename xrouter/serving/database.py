"""The ledger's tables, and the engine that holds them. Money columns are picodollars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("shown", sa.String(16), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("budget", sa.BigInteger),
    sa.Column("requests_per_minute", sa.Integer),
    sa.Column("tokens_per_minute", sa.Integer),
    sa.Column("spent", sa.BigInteger, nullable=False, default=0),
    sa.Column("reserved", sa.BigInteger, nullable=False, default=0),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("revoked", sa.Double),
)
requests = sa.Table(
    "requests",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("key_id", sa.String(16), sa.ForeignKey("api_keys.id")),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("world", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("strategy", sa.String(32), nullable=False, default=""),
    sa.Column("streamed", sa.Boolean, nullable=False, default=False),
    sa.Column("reserved", sa.BigInteger, nullable=False, default=0),
    sa.Column("cost", sa.BigInteger, nullable=False, default=0),
    sa.Column("tokens", sa.BigInteger, nullable=False, default=0),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sa.Column("finished", sa.Double),
    sa.Index("requests_by_key", "key_id", "created"),
    sa.Index("requests_by_state", "state", "expires"),
)
charges = sa.Table(
    "charges",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("request_id", sa.String(64), sa.ForeignKey("requests.id"), index=True),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("cost", sa.BigInteger, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False, default=0),
    sa.Column("output_tokens", sa.BigInteger, nullable=False, default=0),
    sa.Column("estimated", sa.Boolean, nullable=False, default=False),
)


def create_engine(url: str) -> sa.Engine:
    """An engine for an SQLAlchemy URL. Raises ValueError for one that cannot be used."""
    if url.startswith(("postgres://", "postgresql://")):
        url = "postgresql+psycopg://" + url.split("://", 1)[1]
    try:
        parsed = sa.make_url(url)
        dialect = parsed.get_backend_name()
    except sa.exc.ArgumentError:
        raise ValueError(
            "database: not a database URL; write sqlite:///file.sqlite or "
            "postgresql://user@host/name"
        ) from None
    if dialect == "postgresql":
        try:
            return sa.create_engine(parsed, pool_size=8, max_overflow=0, pool_pre_ping=True)
        except ModuleNotFoundError:
            raise ValueError(
                "database: PostgreSQL needs: pip install 'xrouter[postgres]'"
            ) from None
    if dialect != "sqlite":
        raise ValueError(f"database: {dialect!r} is not supported; use sqlite or postgresql")
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(
        parsed,
        connect_args={"timeout": 30, "check_same_thread": False},
        poolclass=sa.pool.QueuePool if parsed.database else sa.pool.StaticPool,
    )
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", lambda db: db.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy's BEGIN IMMEDIATE replaces the driver's BEGIN
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
