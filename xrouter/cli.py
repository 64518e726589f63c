"""The ``xrouter`` command. Heavy imports live inside the commands that need them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from xrouter.serving import commands as serving_commands

app = typer.Typer(
    help="Learned, cost-aware LLM routing.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
eval_app = typer.Typer(help="Measure policies.", no_args_is_help=True)
app.add_typer(eval_app, name="eval")
serving_commands.register(app)
recorded_app = typer.Typer(help="Recorded outcomes of real models.", no_args_is_help=True)
app.add_typer(recorded_app, name="recorded")


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
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make; default results/runs/NAME.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run folder.")] = None,
) -> None:
    """Train a router: warm start, then DAPO."""
    from xrouter.training.trainer import train_from_config

    train_from_config(config, set_ or [], resume=resume, out=out)


@eval_app.command("routing")
def eval_routing(
    policy: Annotated[str, typer.Option(help="A baseline's name, model:<id>, or a run folder.")],
    world: Annotated[str, typer.Option(help="simulated or recorded.")] = "simulated",
    recorded: Annotated[Path | None, typer.Option(help="The recording to measure on.")] = None,
    fit: Annotated[Path | None, typer.Option(help="A recording to fit baselines on.")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test.")] = None,
    limit: Annotated[int | None, typer.Option(help="Measure on a random sample.")] = None,
    cost_weight: Annotated[float | None, typer.Option(help="λ; default: the run's own.")] = None,
    pool: Annotated[str | None, typer.Option(help="A named pool, or model ids.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path | None, typer.Option(help="Stem for episode files; resumable.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Measure one policy beside the best single model and the oracle."""
    from xrouter.evaluation.console import show_routing, write_result
    from xrouter.evaluation.routing import evaluate_routing

    result = evaluate_routing(
        policy,
        world=world,
        recorded=recorded,
        fit=fit,
        split=split,
        limit=limit,
        cost_weight=cost_weight,
        pool=pool,
        seed=seed,
        out=out,
        progress=True,
    )
    if json_ is not None:
        write_result(json_, result)
    show_routing(result)


@eval_app.command("compare")
def eval_compare(
    router: Annotated[Path, typer.Option(help="Run folder of a trained router.")],
    train: Annotated[Path, typer.Option(help="Recording to fit and to choose dials on.")],
    test: Annotated[Path, typer.Option(help="Recording to report on.")],
    baselines: Annotated[str | None, typer.Option(help="Comma-separated names.")] = None,
    dial: Annotated[str | None, typer.Option(help="Comma-separated λ for the router.")] = None,
    pool: Annotated[str | None, typer.Option(help="Comma-separated model ids.")] = None,
    validation: Annotated[float, typer.Option(help="Share of train for the dial.")] = 0.3,
    margin: Annotated[float, typer.Option(help="Safety margin in standard errors.")] = 0.5,
    seed: Annotated[int, typer.Option()] = 0,
    json_: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Compare a trained router with fitted baselines on recorded answers."""
    from xrouter.evaluation.compare import BASELINES, compare
    from xrouter.evaluation.console import show_comparison, write_result

    result = compare(
        router,
        train,
        test,
        baselines=baselines.split(",") if baselines else BASELINES,
        dial=[float(x) for x in dial.split(",")] if dial else None,
        models=pool.split(",") if pool else None,
        validation=validation,
        margin=margin,
        seed=seed,
        progress=True,
    )
    if json_ is not None:
        write_result(json_, result)
    show_comparison(result)


@recorded_app.command("describe")
def recorded_describe(
    directory: Annotated[Path, typer.Argument(help="Folder of a recording.")],
    json_: Annotated[Path | None, typer.Option("--json", help="Write the result here.")] = None,
) -> None:
    """Show models, queries, best single model, oracle and missing cells of a recording."""
    from xrouter.evaluation.console import show_recording, write_result
    from xrouter.fleets.recorded import RecordedFleet, describe

    info = describe(RecordedFleet(directory, allow_missing=True))
    if json_ is not None:
        write_result(json_, info)
    show_recording(info)


@recorded_app.command("split")
def recorded_split(
    directory: Annotated[Path, typer.Argument(help="A recording.")],
    first: Annotated[Path, typer.Argument(help="Folder for the first part.")],
    second: Annotated[Path, typer.Argument(help="Folder for the second part.")],
    share: Annotated[float, typer.Option(help="Share of queries in the first part.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Seed of the cut.")] = 0,
) -> None:
    """Cut a recording in two, stratified by benchmark: one to train on, one to measure on."""
    from xrouter.fleets.halves import split_recording

    counts = split_recording(directory, first, second, share=share, seed=seed)
    print(f"{first}: {counts['first']} queries, {second}: {counts['second']} queries")


@recorded_app.command("import")
def recorded_import(
    format_: Annotated[str, typer.Argument(metavar="FORMAT", help="See --help of the group.")],
    source: Annotated[Path, typer.Argument(metavar="PATH", help="File or folder to read.")],
    out: Annotated[Path, typer.Option(help="Folder of the new recording.")],
    prices: Annotated[Path | None, typer.Option(help="CSV of prices, where needed.")] = None,
) -> None:
    """Import published results into the three-file format."""
    from xrouter.evaluation.console import show_recording
    from xrouter.fleets.importers import import_results
    from xrouter.fleets.recorded import RecordedFleet, describe

    import_results(format_, source, out, prices=prices)
    show_recording(describe(RecordedFleet(out, allow_missing=True)))


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="smoke, offline or full.")] = "offline",
    only: Annotated[str, typer.Option(help="Comma-separated notebook numbers or names.")] = "",
    update: Annotated[bool, typer.Option(help="Write outputs back to notebooks/.")] = False,
    force: Annotated[bool, typer.Option(help="Run what is up to date, too.")] = False,
) -> None:
    """Run the notebooks that are out of date, redraw the figures, write a report."""
    from xrouter.provenance import repo_root
    from xrouter.reproduce import NotebookFailed, run_series

    try:
        run_series(repo_root(), profile=profile, only=only.split(","), update=update, force=force)
    except NotebookFailed as error:
        print(f"xrouter: notebook failed: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if not only and profile != "smoke":
        figures(only="")


@app.command()
def figures(
    only: Annotated[str, typer.Option(help="Comma-separated figure names.")] = "",
    check: Annotated[bool, typer.Option(help="Report stale figures, write nothing.")] = False,
) -> None:
    """Redraw paper_figures/ from the committed results."""
    os.environ["MPLBACKEND"] = "Agg"
    from xrouter.report.figures import regenerate, skipped_figures, stale_figures

    if check:
        problems = stale_figures()
        print("\n".join(problems) or "all figures are up to date")
        raise typer.Exit(1 if problems else 0)
    for name in regenerate([n.strip() for n in only.split(",") if n.strip()]):
        print(f"paper_figures/{name}.pdf .png .csv")
    skipped = {} if only else skipped_figures()
    for name, missing in skipped.items():
        print(f"skipped {name}: {missing} is missing")


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
