"""Results as short tables for a terminal, and as JSON files."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from xrouter.provenance import write_json


def write_result(path: str | Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON; numbers that are not finite become null.

    A device or pipe is written to, not replaced by a file.
    """
    target, content = Path(path), _finite(dict(result))
    if target.exists() and not target.is_file():
        target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    else:
        write_json(target, content)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def show_routing(result: Mapping[str, Any]) -> None:
    """The result of ``xrouter eval routing``."""
    best, oracle = result["best_single"], result["oracle"]
    table = _table(
        f"{result['n']} tasks, world: {result['world']}, λ = {result['cost_weight']:g}",
        ["policy", "accuracy", "$ per 1k", "cost saved", "turns"],
    )
    table.add_row(
        result["policy"],
        _percent(result["accuracy"]),
        _usd(result["usd_per_1k"]),
        _percent(result["cost_save"]),
        f"{result['turns_mean']:.2f}",
    )
    for name, row in ((f"best single: {best['model']}", best), ("oracle (upper bound)", oracle)):
        table.add_row(name, _percent(row["accuracy"]), _usd(row["usd_per_1k"]), "", "")
    _print(table, f"measured on {result['evaluated_on']}; fitted on {result['fitted_on'] or '–'}")


def show_comparison(result: Mapping[str, Any]) -> None:
    """The result of ``xrouter eval compare``."""
    best = result["best_single"]
    columns = ["policy", "save at 100 %", "at 98 %", "at 95 %", "Δ accuracy at equal cost"]
    n = result["n"]
    table = _table(f"{n['test']} test tasks, world: {result['world']}", columns)
    for name, row in {"router": result["router"], **result["baselines"]}.items():
        equal = row["at_equal_cost"]
        table.add_row(
            name,
            *(_percent(row[t] and row[t]["cost_save"]) for t in ("at_100", "at_98", "at_95")),
            _percent(equal and equal["accuracy_delta"]),
        )
    oracle = result["oracle"]
    _print(
        table,
        f"best single model (chosen on train): {best['model']}, {_percent(best['accuracy'])}, "
        f"{_usd(best['usd_per_1k'])} per 1k",
        f"oracle: {_percent(oracle['accuracy'])}, {_usd(oracle['usd_per_1k'])} per 1k",
        f"dials chosen on {result['validation_part']}; – means that test accuracy fell short",
    )


def show_recording(info: Mapping[str, Any]) -> None:
    """The result of ``xrouter recorded describe``."""
    tasks = ", ".join(f"{name} {n}" for name, n in list(info["queries_by_task"].items())[:6])
    if len(info["queries_by_task"]) > 6:
        tasks += f", {len(info['queries_by_task']) - 6} more"
    table = _table(
        f"{info['name']}: {info['queries']} queries ({tasks}), {len(info['models'])} models",
        ["model", "accuracy", "$ per 1k", "no answer", "missing"],
    )
    for row in sorted(info["models"], key=lambda r: -r["accuracy"]):
        table.add_row(
            row["model"],
            _percent(row["accuracy"]),
            _usd(row["usd_per_1k"]),
            str(row["no_answer"]),
            str(row["missing"]),
        )
    best, oracle = info["best_single"], info["oracle"]
    notes = [
        f"best single: {best['model']}, {_percent(best['accuracy'])}, "
        f"{_usd(best['usd_per_1k'])} per 1k",
        f"oracle: {_percent(oracle['accuracy'])}, {_usd(oracle['usd_per_1k'])} per 1k",
        f"missing cells: {info['missing_cells']}",
    ]
    if info["evaluation_only"]:
        notes.append("for evaluation only: training on it is refused")
    _print(table, *notes)


def _table(title: str, columns: list[str]) -> Table:
    table = Table(title=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    return table


def _print(table: Table, *notes: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, markup=False)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _usd(value: float) -> str:
    return f"${value:.3f}"
