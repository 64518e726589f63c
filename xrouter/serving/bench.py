"""Load and fault runs against a real server process: ``xrouter bench serve``.

Three scenarios, each over real HTTP, with ``tests/fake_provider.py`` of the repository as the
provider, which keeps books of its own:

- ``streams``: many streams at once; none may be lost, and the ledger must equal the replies.
- ``faults``: a share of upstream calls fails in mixed ways; the bill of every request is compared
  with the provider's books.
- ``memory``: steady load for minutes; the server's resident memory must stay flat.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from xrouter.catalog import Catalog
from xrouter.provenance import provenance, repo_root, write_atomic
from xrouter.serving.accounts import Ledger, pico

SCENARIOS = ("streams", "faults", "memory")
BILL_TOLERANCE_PICO = 1000
MODELS = ("gpt-4.1-nano", "gpt-4o-mini", "gpt-4.1-mini", "gpt-4.1", "gpt-4o")
FAULT_KINDS = (
    "429",
    "500",
    "503",
    "hang",
    "drip",
    "cut",
    "early_eof",
    "invalid_json",
    "usage_missing",
    "usage_zero",
    "usage_huge",
    "usage_negative",
)


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """``streams`` at once; ``requests`` in the fault run, ``concurrency`` at a time; ``rate``
    is the share of upstream calls that fail; ``words`` the length of a reply."""

    streams: int = 1000
    requests: int = 2000
    concurrency: int = 32
    rate: float = 0.1
    minutes: float = 10.0
    words: int = 20
    policy: str = "cheapest"
    seed: int = 0


@dataclass(slots=True)
class Sent:
    """What came of one request. ``cost_usd`` is what the reply said; None: there was none."""

    marker: str
    streamed: bool
    status: int = 0
    cost_usd: float | None = None
    first_s: float = 0.0
    total_s: float = 0.0
    error: str = ""

    @property
    def answered(self) -> bool:
        return self.status == 200 and self.cost_usd is not None and not self.error


@dataclass(slots=True)
class Site:
    """A running server and its provider."""

    base: str
    provider: str
    server_pid: int
    ledger: Ledger
    catalog: Catalog

    def control(self, **settings: Any) -> None:
        request = urllib.request.Request(
            f"{self.provider}/control", data=json.dumps(settings).encode()
        )
        urllib.request.urlopen(request, timeout=30).close()

    def books(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.provider}/books", timeout=120) as reply:
            return list(json.load(reply))


@dataclass(slots=True)
class Report:
    """Rows of (scenario, metric, value), and what failed."""

    rows: list[tuple[str, str, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, scenario: str, **metrics: float) -> None:
        self.rows += [(scenario, name, float(value)) for name, value in metrics.items()]

    def demand(self, condition: bool, what: str) -> None:
        if not condition:
            self.failures.append(what)

    def to_csv(self, options: BenchOptions) -> str:
        stamp = provenance(config=options.__repr__(), seed=options.seed)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        head = ("scenario", "metric", "value", "world", "cpus", "commit", "command", "created")
        writer.writerow(head)
        for scenario, metric, value in self.rows:
            common = ("live over a fake provider", os.cpu_count(), stamp["commit"])
            shown = f"{value:.12g}"
            writer.writerow((scenario, metric, shown, *common, stamp["command"], stamp["created"]))
        return out.getvalue()


def bench(
    scenarios: list[str], options: BenchOptions, *, out: Path | None, say: Callable[[str], None]
) -> Report:
    """Run scenarios one after another, each with a fresh server. Raises ValueError for an unknown
    one."""
    if unknown := [s for s in scenarios if s not in SCENARIOS]:
        raise ValueError(f"scenario={unknown[0]!r}; use {', '.join(SCENARIOS)}")
    report = Report()
    runners = {"streams": _streams, "faults": _faults, "memory": _memory}
    for name in scenarios:
        with running_site(options, 15.0 if name == "faults" else 600.0) as site:
            asyncio.run(runners[name](site, options, report))
        for _, metric, value in [r for r in report.rows if r[0] == name]:
            say(f"{name:8} {metric:28} {value:.6g}")
    if out is not None:
        write_atomic(out, report.to_csv(options))
    return report


async def _streams(site: Site, options: BenchOptions, report: Report) -> None:
    site.control(reset=True, token_delay_s=0.02, keep_requests=False)
    started = time.monotonic()
    async with client(options.streams) as http:
        jobs = [
            send(http, site, f"s{i}", stream=True, words=options.words)
            for i in range(options.streams)
        ]
        sent = await asyncio.gather(*jobs)
    wall = time.monotonic() - started
    lost = [s for s in sent if not s.answered]
    replies = sum(pico(s.cost_usd or 0.0) for s in sent)
    ledger = pico(site.ledger.total_usd())
    report.add(
        "streams",
        requests=len(sent),
        lost=len(lost),
        wall_s=wall,
        first_token_p50_s=quantile([s.first_s for s in sent], 0.5),
        first_token_p95_s=quantile([s.first_s for s in sent], 0.95),
        replies_usd=replies / 1e12,
        ledger_usd=ledger / 1e12,
        ledger_minus_replies_usd=(ledger - replies) / 1e12,
        discrepancies=len(site.ledger.discrepancies()),
        server_rss_mb=rss_mb(site.server_pid),
    )
    report.demand(not lost, f"streams: {len(lost)} lost, first: {lost[0] if lost else ''}")
    report.demand(abs(ledger - replies) < 10**6, "streams: ledger and replies differ")


async def _faults(site: Site, options: BenchOptions, report: Report) -> None:
    kinds = list(FAULT_KINDS)
    site.control(reset=True, seed=options.seed, rate=options.rate, kinds=kinds, drip_s=0.05)
    started = time.monotonic()
    gate = asyncio.Semaphore(options.concurrency)

    async def one(http: httpx.AsyncClient, number: int) -> Sent:
        async with gate:
            streamed = number % 2 == 0
            return await send(http, site, f"f{number}.", stream=streamed, words=options.words)

    async with client(options.concurrency) as http:
        sent = await asyncio.gather(*(one(http, i) for i in range(options.requests)))
    wall = time.monotonic() - started
    books = site.books()
    truth = true_costs(books, site.catalog)
    wrong = [
        s for s in sent if abs(pico(s.cost_usd or 0.0) - truth[s.marker]) > BILL_TOLERANCE_PICO
    ]
    unanswered = [s for s in sent if not s.answered]
    faulty = sum(e["fault"] != "ok" for e in books)
    share = 1 - len(unanswered) / len(sent)
    ledger = pico(site.ledger.total_usd())
    report.add(
        "faults",
        requests=len(sent),
        upstream_calls=len(books),
        upstream_faulty_share=faulty / len(books),
        answered_share=share,
        billed_wrong=len(wrong),
        ledger_minus_provider_usd=(ledger - sum(truth.values())) / 1e12,
        wall_s=wall,
        latency_p50_s=quantile([s.total_s for s in sent], 0.5),
        latency_p95_s=quantile([s.total_s for s in sent], 0.95),
    )
    report.demand(share >= 0.999, f"faults: {share:.4%} answered; first: {unanswered[:1]}")
    report.demand(not wrong, f"faults: {len(wrong)} billed wrong; first: {wrong[:1]}")


async def _memory(site: Site, options: BenchOptions, report: Report) -> None:
    site.control(reset=True, keep_requests=False, keep_books=False)
    end = time.monotonic() + 60 * options.minutes
    samples: list[float] = []
    done = [0, 0]

    async def worker(http: httpx.AsyncClient, number: int) -> None:
        while time.monotonic() < end:
            sent = await send(http, site, f"m{number}", stream=number % 2 == 0, words=options.words)
            done[sent.answered] += 1

    async def sampler() -> None:
        while time.monotonic() < end:
            samples.append(rss_mb(site.server_pid))
            await asyncio.sleep(1.0)

    async with client(options.concurrency) as http:
        jobs = [worker(http, i) for i in range(options.concurrency)]
        await asyncio.gather(sampler(), *jobs)
    quarters = [samples[i * len(samples) // 4 : (i + 1) * len(samples) // 4] for i in range(4)]
    second, last = statistics.fmean(quarters[1]), statistics.fmean(quarters[3])
    report.add(
        "memory",
        minutes=options.minutes,
        requests=sum(done),
        lost=done[0],
        requests_per_s=sum(done) / (60 * options.minutes),
        rss_start_mb=samples[0],
        rss_second_quarter_mb=second,
        rss_last_quarter_mb=last,
        rss_max_mb=max(samples),
    )
    report.demand(last <= 1.05 * second, f"memory: grew from {second:.0f} to {last:.0f} MB")
    report.demand(done[0] == 0, f"memory: {done[0]} requests lost")


def client(connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(900.0))


async def send(
    http: httpx.AsyncClient, site: Site, marker: str, *, stream: bool, words: int
) -> Sent:
    """One request, its reply read to the end. Never raises for what the server does."""
    sent = Sent(marker, stream)
    content = f"<{marker}> [[words={words}]]"
    body = {
        "model": "xrouter",
        "messages": [{"role": "user", "content": content}],
        "stream": stream,
    }
    started = time.monotonic()
    try:
        async with http.stream("POST", f"{site.base}/chat/completions", json=body) as reply:
            sent.status = reply.status_code
            if stream and reply.status_code == 200:
                await _read_events(reply, sent, started)
            else:
                sent.first_s = time.monotonic() - started
                data = json.loads(await reply.aread())
                sent.cost_usd = (data.get("router_metadata") or {}).get("total_cost")
                if "error" in data:
                    sent.error = str(data["error"]["message"])
                    sent.cost_usd = float(reply.headers.get("x-xrouter-cost", 0))
    except (httpx.HTTPError, ValueError) as error:
        sent.error = f"{type(error).__name__}: {error}"
    sent.total_s = time.monotonic() - started
    return sent


async def _read_events(reply: httpx.Response, sent: Sent, started: float) -> None:
    ended = False
    async for line in reply.aiter_lines():
        if not line.startswith("data: "):
            continue
        sent.first_s = sent.first_s or time.monotonic() - started
        if line == "data: [DONE]":
            ended = True
            continue
        data = json.loads(line.removeprefix("data: "))
        if "error" in data:
            sent.error = str(data["error"]["message"])
        if "router_metadata" in data:
            sent.cost_usd = data["router_metadata"]["total_cost"]
    if not ended:
        sent.error = sent.error or "the stream ended without [DONE]"


def true_costs(books: list[dict[str, Any]], catalog: Catalog) -> dict[str, int]:
    """Picodollars that each request really consumed, by its marker, from the provider's books."""
    truth: dict[str, int] = defaultdict(int)
    for entry in books:
        text = next(m["content"] for m in entry["request"]["messages"] if m["role"] == "user")
        marker = text[text.index("<") + 1 : text.index(">")]
        usd = catalog[entry["model"]].cost(
            entry["prompt_tokens"], entry["output_tokens"], entry["cached_tokens"]
        )
        truth[marker] += pico(usd)
    return truth


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no VmRSS")


@contextmanager
def running_site(options: BenchOptions, timeout_s: float) -> Iterator[Site]:
    """The fake provider and a server in front of it, both as processes on free ports.
    ``timeout_s`` is how long the server waits for a reply to begin."""
    script = repo_root() / "tests" / "fake_provider.py"
    if not script.is_file():
        raise FileNotFoundError(f"{script.name} is part of a checkout; run this from one")
    with tempfile.TemporaryDirectory(prefix="xrouter-bench-") as folder:
        ports = _free_ports(2)
        provider = f"http://127.0.0.1:{ports[0]}"
        config = Path(folder) / "serve.yaml"
        database = f"sqlite:///{folder}/ledger.sqlite"
        config.write_text(yaml.safe_dump(_config(ports[1], provider, database, options, timeout_s)))
        serve = ["-c", "from xrouter.cli import main; main()", "serve", "--config", str(config)]
        environment = {**os.environ, "OPENAI_API_KEY": "none", "XROUTER_LOG": "ERROR"}
        commands = ([str(script), "--port", str(ports[0])], serve)
        processes = [subprocess.Popen([sys.executable, *c], env=environment) for c in commands]
        try:
            for process, url in zip(
                processes,
                (f"{provider}/v1/models", f"http://127.0.0.1:{ports[1]}/health/ready"),
                strict=True,
            ):
                _wait(process, url)
            with Ledger(database) as ledger:
                base = f"http://127.0.0.1:{ports[1]}/v1"
                yield Site(base, provider, processes[1].pid, ledger, Catalog.load())
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(60)


def _config(
    port: int, provider: str, database: str, options: BenchOptions, timeout_s: float
) -> dict[str, Any]:
    return {
        "port": port,
        "database": database,
        "fleet": "live",
        "pool": ",".join(MODELS),
        "policy": {"kind": "baseline", "name": options.policy},
        "profiles": {"xrouter": {}},
        "drain_s": 2,
        "call_timeout_s": 900.0,
        "request_timeout_s": 900.0,
        "live": {
            "timeout_s": timeout_s,
            "idle_timeout_s": 600.0,
            "cooldown_s": 0.1,
            "allowed_fails": 1000,
            "providers": {
                "openai": {"api_base": f"{provider}/v1", "api_key_env": ["OPENAI_API_KEY"]}
            },
        },
    }


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait(process: subprocess.Popen[bytes], url: str, timeout_s: float = 300.0) -> None:
    from xrouter.serving.host import wait_until_ready

    wait_until_ready(process, url, timeout_s, 0.2)
