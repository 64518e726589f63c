"""What the serving tests share: processes on free ports, the fake provider, a small catalog."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from xrouter.catalog import Catalog, ModelSpec
from xrouter.fleets.live import LiveConfig
from xrouter.providers.keys import ProviderConfig
from xrouter.serving.accounts import Ledger

TESTS = Path(__file__).parent
CLI = [sys.executable, "-c", "from xrouter.cli import main; main()"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get_json(url: str, body: Any = None, timeout: float = 10) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=timeout) as reply:
        return json.load(reply)


def wait_for(url: str, process: subprocess.Popen[bytes], timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"process ended with {process.returncode} before {url} answered")
        try:
            get_json(url, timeout=2)
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{url} did not answer within {timeout_s} s")


class FakeProvider:
    """The fake provider as a process; a context manager."""

    def __init__(self) -> None:
        self.port = free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.base = f"{self.root}/v1"

    def __enter__(self) -> FakeProvider:
        command = [sys.executable, str(TESTS / "fake_provider.py"), "--port", str(self.port)]
        self.process = subprocess.Popen(command)
        wait_for(f"{self.root}/books", self.process)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def control(self, **settings: Any) -> None:
        get_json(f"{self.root}/control", settings)

    def reset(self, **settings: Any) -> None:
        self.control(reset=True, **settings)

    def books(self) -> list[dict[str, Any]]:
        return get_json(f"{self.root}/books")

    def true_cost(self, catalog: Catalog) -> float:
        """USD of everything in the books, at the catalog's prices."""
        return sum(
            catalog[e["model"]].cost(e["prompt_tokens"], e["output_tokens"], e["cached_tokens"])
            for e in self.books()
        )


def small_catalog() -> Catalog:
    """Five models on one OpenAI-compatible provider; prices differ so that bills tell who."""

    def spec(ident: str, tier: str, inp: float, out: float, **more: Any) -> ModelSpec:
        return ModelSpec(
            ident, inp, out, (tier,), provider="openai", litellm_id=f"openai/{ident}", **more
        )

    return Catalog(
        [
            spec("gpt-4.1-nano", "budget", 0.1, 0.4, cached_input_usd_per_million=0.025),
            spec("gpt-4o-mini", "budget", 0.15, 0.6),
            spec("gpt-4.1-mini", "standard", 0.4, 1.6, context_window=8000),
            spec("gpt-5-mini", "standard", 0.25, 2.0, thinking=True),
            spec("gpt-4o", "premium", 2.5, 10.0, scores={"gpqa_diamond": 79.1}),
        ],
        pools={"cheap": ["gpt-4.1-nano", "gpt-4o-mini"]},
        price_date="2025-10-01",
    )


def live_config(provider: FakeProvider, **settings: Any) -> LiveConfig:
    return LiveConfig(
        providers={"openai": ProviderConfig(api_base=provider.base)},
        **{"timeout_s": 5.0, "idle_timeout_s": 1.0, "retries": 0, **settings},
    )


def write_catalog(path: Path, catalog: Catalog) -> None:
    rows = []
    for spec in catalog:
        row = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)}
        row.update(tiers=list(spec.tiers), capabilities=list(spec.capabilities))
        rows.append(row | {"scores": dict(spec.scores)})
    pools = {name: list(ids) for name, ids in catalog.pools.items()}
    content = {"price_date": catalog.price_date, "models": rows, "pools": pools}
    path.write_text(yaml.safe_dump(content))


PROFILES = {
    "router-tool-rl": {"cost_weight": 0.12},
    "xrouter": {"cost_weight": 0.12},
    "xrouter-economy": {"cost_weight": 0.5},
    "xrouter-quality": {"cost_weight": 0.0},
}


class XRouterServer:
    """``xrouter serve`` as a process on a free port; a context manager.

    With a provider, the live fleet of :func:`small_catalog` talks to it; without one, the fleet
    is simulated. ``settings`` are fields of the server's config.
    """

    def __init__(self, folder: Path, provider: FakeProvider | None = None, **settings: Any) -> None:
        self.port = free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.base = f"{self.root}/v1"
        self.folder = folder
        self.database = f"sqlite:///{folder}/ledger.sqlite"
        config: dict[str, Any] = {
            "port": self.port,
            "database": self.database,
            "fleet": "simulated",
            "policy": {"kind": "baseline", "name": "cheapest"},
            "profiles": PROFILES,
            "drain_s": 5,
        }
        if provider is not None:
            write_catalog(folder / "models.yaml", small_catalog())
            live = {
                "timeout_s": 5.0,
                "idle_timeout_s": 3.0,
                "retries": 0,
                "providers": {"openai": {"api_base": provider.base}},
            }
            config |= {"fleet": "live", "catalog": str(folder / "models.yaml"), "live": live}
        self.config = folder / "serve.yaml"
        self.config.write_text(yaml.safe_dump(config | settings))
        self.log = folder / "server.log"

    def __enter__(self) -> XRouterServer:
        self.process = self.start()
        wait_for(f"{self.root}/health/live", self.process)
        return self

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*CLI, "serve", "--config", str(self.config)],
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
        )

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def command(self, *arguments: str) -> str:
        """Output of another ``xrouter`` command with this server's config."""
        done = subprocess.run(
            [*CLI, *arguments, "--config", str(self.config)],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def ledger(self) -> Ledger:
        return Ledger(self.database)


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    """A throw-away PostgreSQL server, where its binaries are installed."""
    if not (shutil.which("initdb") and shutil.which("postgres")):
        pytest.skip("PostgreSQL binaries are not installed")
    user = None
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = next((n for n in ("postgres", "nobody") if n in names), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root and there is no other user")
    folder = tempfile.mkdtemp(prefix="xrouter-pg-")
    if user:
        shutil.chown(folder, user)
    port = free_port()
    data = Path(folder) / "data"
    initdb = ["initdb", "-D", str(data), "-U", "xrouter", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, user=user, check=True, capture_output=True, cwd=folder)
    command = ["postgres", "-D", str(data), "-p", str(port), "-k", folder, "-h", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, "-c", "fsync=off"], user=user, cwd=folder, stderr=subprocess.DEVNULL
    )
    try:
        url = f"postgresql://xrouter@127.0.0.1:{port}/postgres"
        _wait_until_it_answers(url)
        yield url
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_answers(url: str) -> None:
    for _ in range(200):
        try:
            Ledger(url).close()
            return
        except sa.exc.OperationalError:
            time.sleep(0.1)
    raise RuntimeError("PostgreSQL did not start")
