"""The serving commands of ``xrouter``: serve, host, keys, spend, bench."""

from __future__ import annotations

import logging
import os
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from xrouter.serving.accounts import Ledger
    from xrouter.serving.config import ServeConfig

keys_app = typer.Typer(help="API keys of the server.", no_args_is_help=True)
bench_app = typer.Typer(help="Load and fault runs.", no_args_is_help=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="Default: configs/serve.yaml.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override: dotted.key=value.")]


def register(app: typer.Typer) -> None:
    """Add the serving commands to the ``xrouter`` command."""
    app.command()(serve)
    app.command()(host)
    app.command()(spend)
    app.add_typer(keys_app, name="keys")
    app.add_typer(bench_app, name="bench")


def serve(
    config: ConfigOption = None,
    host: Annotated[str | None, typer.Option(help="Address; not loopback: keys.")] = None,
    port: Annotated[int | None, typer.Option()] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="A run or checkpoint folder, chat:<model>[@<api_base>], or a baseline."),
    ] = None,
    fleet: Annotated[str | None, typer.Option(help="auto, live or simulated.")] = None,
    set_: SetOption = None,
) -> None:
    """Serve the OpenAI-compatible API."""
    from xrouter.serving.build import make_server, policy_config

    flags = {"host": host, "port": port, "fleet": fleet}
    settings = [f"{k}={v}" for k, v in flags.items() if v is not None]
    loaded = _load(config, [*settings, *(set_ or [])])
    if policy is not None:
        loaded = loaded.model_copy(update={"policy": policy_config(policy, loaded.policy)})
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("xrouter").setLevel(os.environ.get("XROUTER_LOG", "INFO").upper())
    server = make_server(loaded)
    status = server.app.state.server.status()
    typer.echo(
        f"xrouter on http://{loaded.host}:{loaded.port}/v1  world={status['world']}  "
        f"policy={status['policy']}  models={status['models']}"
    )
    server.run()


def host(
    model: Annotated[str, typer.Argument(help="A Hugging Face id or a folder.")],
    served_name: Annotated[str, typer.Option()] = "router-tool-rl",
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8000,
    tensor_parallel: Annotated[int, typer.Option(help="GPUs to split the model over.")] = 1,
    max_model_len: Annotated[int, typer.Option()] = 32_768,
    python: Annotated[
        str | None, typer.Option(help="Interpreter of an environment with vLLM.")
    ] = None,
    extra: Annotated[str, typer.Option(help="More vLLM arguments, quoted.")] = "",
    ready_timeout: Annotated[float, typer.Option(help="Seconds.")] = 900.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command only.")] = False,
) -> None:
    """Serve a router model with vLLM, for xrouter serve --policy chat:…"""
    from xrouter.serving.host import HostOptions, run, vllm_command

    options = HostOptions(
        model,
        served_name,
        host,
        port,
        tensor_parallel,
        max_model_len,
        python,
        tuple(shlex.split(extra)),
    )
    if dry_run:
        typer.echo(shlex.join(vllm_command(options)))
        return
    raise typer.Exit(run(options, ready_timeout_s=ready_timeout, say=typer.echo))


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    budget: Annotated[float | None, typer.Option(help="USD in all; default: none.")] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests per minute.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens per minute.")] = None,
    config: ConfigOption = None,
) -> None:
    """Make a key and print its secret, once."""
    with _ledger(config) as ledger:
        secret, key = ledger.create_key(
            name, budget_usd=budget, requests_per_minute=rpm, tokens_per_minute=tpm
        )
    typer.echo(f"{secret}\nid {key.id}; the secret is not stored and cannot be shown again")


@keys_app.command("list")
def keys_list(config: ConfigOption = None) -> None:
    """Show keys, budgets and what was spent."""
    with _ledger(config) as ledger:
        rows = [
            {
                "id": key.id,
                "name": key.name,
                "key": key.shown,
                "budget": "none" if key.budget_usd is None else f"${key.budget_usd:.2f}",
                "spent": f"${key.spent_usd:.6f}",
                "reserved": f"${key.reserved_usd:.6f}",
                "rpm": key.requests_per_minute or "",
                "tpm": key.tokens_per_minute or "",
                "created": _day(key.created),
                "revoked": _day(key.revoked) if key.revoked else "",
            }
            for key in ledger.list_keys()
        ]
    _table(rows, empty="no keys; make one with: xrouter keys create --name me")


@keys_app.command("revoke")
def keys_revoke(
    ident: Annotated[str, typer.Argument(help="The key's id, or the beginning of it.")],
    config: ConfigOption = None,
) -> None:
    """Refuse a key from now on. What it spent stays in the ledger."""
    with _ledger(config) as ledger:
        key = ledger.revoke_key(ident)
    typer.echo(f"revoked {key.id} ({key.name})")


def spend(
    by: Annotated[str, typer.Option(help="key, model or day.")] = "key",
    config: ConfigOption = None,
) -> None:
    """Show what was spent."""
    with _ledger(config) as ledger:
        rows = ledger.spend(by)
        problems = ledger.discrepancies()
    for row in rows:
        row["cost_usd"] = f"{row['cost_usd']:.6f}"
        if by == "day":
            row["day"] = _day(86400.0 * int(row["day"]))
    _table(rows, empty="nothing was spent yet")
    for problem in problems:
        typer.echo(f"does not add up: {problem}", err=True)


def _load(path: Path | None, settings: list[str]) -> ServeConfig:
    from xrouter.config import load_config
    from xrouter.provenance import repo_root
    from xrouter.serving.build import read_env_files
    from xrouter.serving.config import ServeConfig

    read_env_files()
    return load_config(path or repo_root() / "configs" / "serve.yaml", ServeConfig, settings)


def _ledger(path: Path | None) -> Ledger:
    from xrouter.serving.build import open_ledger

    return open_ledger(_load(path, []))


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _table(rows: list[dict[str, Any]], *, empty: str) -> None:
    """Rows as aligned columns, names of the first row as the head."""
    if not rows:
        typer.echo(empty)
        return
    cells = [list(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    for line in cells:
        typer.echo("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())


@bench_app.command("serve")
def bench_serve(
    scenario: Annotated[
        list[str] | None, typer.Option(help="streams, faults or memory; repeat it. Default: all.")
    ] = None,
    streams: Annotated[int, typer.Option(help="Streams at once.")] = 1000,
    requests: Annotated[int, typer.Option(help="Requests of the fault run.")] = 2000,
    concurrency: Annotated[int, typer.Option(help="At a time, faults and memory.")] = 32,
    rate: Annotated[float, typer.Option(help="Share of upstream calls that fail.")] = 0.1,
    minutes: Annotated[float, typer.Option(help="Length of the memory run.")] = 10.0,
    words: Annotated[int, typer.Option(help="Length of a reply.")] = 20,
    policy: Annotated[str, typer.Option(help="A baseline.")] = "cheapest",
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path | None, typer.Option(help="Write a CSV here.")] = None,
) -> None:
    """Load and fault runs against a server process with a fake provider behind it."""
    from xrouter.serving.bench import SCENARIOS, BenchOptions, bench

    options = BenchOptions(streams, requests, concurrency, rate, minutes, words, policy, seed)
    report = bench(scenario or list(SCENARIOS), options, out=out, say=typer.echo)
    for failure in report.failures:
        typer.echo(f"FAILED {failure}", err=True)
    raise typer.Exit(1 if report.failures else 0)
