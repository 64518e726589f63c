"""The ``xrouter`` command. Heavy imports live inside the commands that need them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Learned, cost-aware LLM routing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
eval_app = typer.Typer(help="Measure policies.", no_args_is_help=True)
app.add_typer(eval_app, name="eval")


@app.command()
def models() -> None:
    """Show the catalog as a table."""
    from rich.console import Console
    from rich.table import Table

    from xrouter.catalog import Catalog

    catalog = Catalog.load()
    table = Table(title=f"{len(catalog)} models, USD per million tokens, {catalog.price_date}")
    for column in ("model", "tool", "tiers"):
        table.add_column(column, no_wrap=column != "tiers")
    for column in ("in", "out", "context"):
        table.add_column(column, justify="right")
    for spec in catalog:
        table.add_row(
            spec.id,
            spec.tool_name,
            ", ".join(spec.tiers),
            f"{spec.input_usd_per_million:.2f}",
            f"{spec.output_usd_per_million:.2f}",
            f"{spec.context_window:,}",
        )
    width = None if sys.stdout.isatty() else 120
    Console(width=width).print(table)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A file of configs/train/.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override: dotted.key=value.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run folder.")] = None,
) -> None:
    """Train a router: warm start, then DAPO."""
    from xrouter.training.trainer import train_from_config

    train_from_config(config, set_ or [], resume=resume)


def main() -> None:
    """Entry point: expected errors print one line and exit with 2."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        app()
    except (ValueError, FileNotFoundError, KeyError) as error:
        if os.environ.get("XROUTER_DEBUG"):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"xrouter: error: {message}", file=sys.stderr)
        raise SystemExit(2) from None
