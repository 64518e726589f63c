"""The figures of the repository: who builds them, and how they are written.

``FIGURES`` maps a name to a builder. A builder reads committed results, nothing else, and
returns the figure, a tidy frame of what it plots, and the files it read. ``xrouter figures``
writes each as ``paper_figures/<name>.{pdf,png,csv}``; ``MANIFEST.json`` beside them holds the
inputs, the command and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from xrouter.provenance import portable_path, repo_root, write_atomic, write_json
from xrouter.report import measured, plots, suite_plots, tables, training_plots

Built = tuple[Figure, pd.DataFrame, list[Path]]
MANIFEST = "MANIFEST.json"
PUBLISHED_NOTE = (
    "Published numbers of the original system (Salesforce AI Research, arXiv 2510.08439), "
    "not measured here. LiveBench: total cost of a run."
)


def published_pareto(results: Path) -> Built:
    """Published score over cost of every system, per benchmark, with the step frontier."""
    points = tables.read_published(results)
    figure = plots.cost_quality(points, note=PUBLISHED_NOTE)
    dominated = tables.dominated_by(points)[["panel", "system", "by"]]
    frame = points.merge(dominated, how="left", on=["panel", "system"])
    return figure, frame.rename(columns={"by": "dominated_by"}), [results / tables.PUBLISHED]


def published_cost_utility(results: Path) -> Built:
    """Published score per dollar of every system, per benchmark."""
    points = tables.cost_utility(tables.read_published(results))
    figure = plots.cost_utility_dots(points, note=PUBLISHED_NOTE)
    return figure, points, [results / tables.PUBLISHED]


def simulated_pareto(results: Path) -> Built:
    """Accuracy over cost of the trained router and all baselines in the simulated world."""
    points = pd.read_csv(results / measured.SIMULATED)
    columns = [c for c in points.columns if "/" not in c]
    note = (
        f"Simulated world, {points['n'].iloc[0]} test tasks, bars: 95 % bootstrap intervals. "
        "Shows that the pipeline works; no evidence about real models."
    )
    figure = suite_plots.suite_pareto(points, note=note)
    return figure, points[columns], _files("simulated_pareto", results)


def simulated_routing(results: Path) -> Built:
    """Which models the trained router calls, by domain, at the ends and the middle of its dial."""
    routing = pd.read_csv(results / measured.SIMULATED_ROUTING)
    points = pd.read_csv(results / measured.SIMULATED)
    singles = points[points["kind"] == tables.SINGLE].sort_values("usd_per_1k", ascending=False)
    dial = sorted(set(routing["cost_weight"]))
    shown = sorted({dial[0], dial[len(dial) // 2], dial[-1]})
    note = "Simulated world, test split: % of a domain's requests that called the model."
    figure = suite_plots.routing_heatmap(
        routing, weights=shown, order=list(singles["policy"]), note=note
    )
    frame = routing[routing["cost_weight"].isin(shown)]
    return figure, frame, _files("simulated_routing", results)


def training_curves(results: Path) -> Built:
    """What DAPO's own episodes looked like over the steps, three seeds."""
    runs = measured.read_training(results)
    note = (
        "Simulated world. Sampled training episodes (random pools and λ, curriculum): thin lines "
        "are seeds, thick ones their moving average."
    )
    figure = training_plots.training_panel(runs, note=note)
    columns = ["step", "reward", "accuracy", "cost/mean_usd", "turns/mean", "routing/calls_mean"]
    columns += ["entropy", "clip_ratio/low_mean", "clip_ratio/high_mean"]
    return figure, _stacked(runs, columns), _files("training_curves", results)


def training_heldout(results: Path) -> Built:
    """Held-out reward of greedy routing over the steps, three seeds, with the warm start."""
    runs = measured.read_training(results, file="validation.csv")
    note = (
        "Simulated world, validation split, greedy routing, bars: ±1.96 standard errors; "
        "hollow: before DAPO."
    )
    figure = training_plots.validation_curves(runs, note=note)
    return figure, _stacked(runs), _files("training_heldout", results)


def _stacked(runs: Mapping[str, pd.DataFrame], columns: Sequence[str] = ()) -> pd.DataFrame:
    """The frames of several runs as one, with ``world`` and ``run`` in front."""
    parts = []
    for run, frame in runs.items():
        part = frame[list(columns)] if columns else frame.copy()
        part.insert(0, "run", run)
        part.insert(0, "world", "simulated")
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def recorded_frontier(results: Path) -> Built:
    """Accuracy over cost of a router trained on recorded answers, and of the baselines."""
    points = pd.read_csv(results / measured.RECORDED)
    note = (
        f"Recorded answers of real models, {points['n'].iloc[0]} held-out queries, prices of the "
        "recording."
    )
    figure = suite_plots.suite_pareto(points, note=note)
    return figure, points, _files("recorded_frontier", results)


def _files(name: str, results: Path) -> list[Path]:
    return [results / path for path in NEEDS[name]]


FIGURES: dict[str, Callable[[Path], Built]] = {
    "published_pareto": published_pareto,
    "published_cost_utility": published_cost_utility,
    "simulated_pareto": simulated_pareto,
    "simulated_routing": simulated_routing,
    "training_curves": training_curves,
    "training_heldout": training_heldout,
    "recorded_frontier": recorded_frontier,
}

NEEDS: dict[str, tuple[Path, ...]] = {
    "published_pareto": (tables.PUBLISHED,),
    "published_cost_utility": (tables.PUBLISHED,),
    "simulated_pareto": (measured.SIMULATED,),
    "simulated_routing": (measured.SIMULATED_ROUTING, measured.SIMULATED),
    "training_curves": measured.training_files("metrics.csv"),
    "training_heldout": measured.training_files("validation.csv"),
    "recorded_frontier": (measured.RECORDED,),
}
"""What each figure reads, relative to ``results/``."""


def style() -> Any:
    """Context manager with the repository's style alone, whatever the caller has set."""
    return mpl.style.context([repo_root() / "configs" / "figures.mplstyle"], after_reset=True)


def build(name: str, results: Path | None = None) -> Built:
    """Build one figure of ``FIGURES`` in the repository's style."""
    if name not in FIGURES:
        raise ValueError(f"figure={name!r} is unknown; known: {', '.join(FIGURES)}")
    with style():
        try:
            return FIGURES[name](results or repo_root() / "results")
        except FileNotFoundError as error:
            missing = portable_path(error.filename) if error.filename else str(error)
            raise FileNotFoundError(
                f"figure {name}: {missing} is missing; `make reproduce` writes the results"
            ) from error


def write_figure(
    figure: Figure,
    frame: pd.DataFrame,
    name: str,
    inputs: Sequence[Path],
    *,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Write ``<name>.pdf``, ``.png`` and ``.csv`` and enter them in the manifest.

    Equal figures give equal bytes: no dates and no versions are written. Returns the entry.
    """
    folder = folder or repo_root() / "paper_figures"
    contents = {
        f"{name}.pdf": _rendered(figure, "pdf", {"CreationDate": None, "Producer": None}),
        f"{name}.png": _rendered(figure, "png", {"Software": None}),
        f"{name}.csv": frame.to_csv(index=False, float_format="%.8g", lineterminator="\n").encode(),
    }
    for file, data in contents.items():
        write_atomic(folder / file, data)
    worlds = sorted(set(frame["world"])) if "world" in frame.columns else []
    entry = {
        "command": f"xrouter figures --only {name}",
        "world": worlds,
        "inputs": {portable_path(path): _sha256(path.read_bytes()) for path in inputs},
        "files": {file: _sha256(data) for file, data in contents.items()},
    }
    entries = read_manifest(folder) | {name: entry}
    write_json(folder / MANIFEST, dict(sorted(entries.items())))
    return entry


def read_manifest(folder: Path | None = None) -> dict[str, Any]:
    path = (folder or repo_root() / "paper_figures") / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def stale_figures(folder: Path | None = None, results: Path | None = None) -> list[str]:
    """What is wrong with the written figures: missing or altered files, inputs that changed
    since, entries nobody builds any more. Empty when all is well. A figure that was never written
    because its results are not there is none of this, see :func:`skipped_figures`."""
    folder = folder or repo_root() / "paper_figures"
    manifest = read_manifest(folder)
    waiting = skipped_figures(results)
    unwritten = [name for name in FIGURES if name not in manifest and name not in waiting]
    problems = [f"{name}: not written yet" for name in unwritten]
    for name, entry in manifest.items():
        if name not in FIGURES:
            problems.append(f"{name}: no builder in FIGURES")
        problems += [
            f"{name}: {file} {state}"
            for where, files in ((folder, entry["files"]), (repo_root(), entry["inputs"]))
            for file, digest in files.items()
            if (state := _state(where / file, digest))
        ]
    return problems


def skipped_figures(results: Path | None = None) -> dict[str, str]:
    """Figures that cannot be built because a result is missing, each with the missing file."""
    base = results or repo_root() / "results"
    missing = {
        name: [p for p in NEEDS.get(name, ()) if not (base / p).is_file()] for name in FIGURES
    }
    return {name: portable_path(base / paths[0]) for name, paths in missing.items() if paths}


def regenerate(
    names: Iterable[str] = (), *, results: Path | None = None, folder: Path | None = None
) -> list[str]:
    """Build and write the named figures, or all that have their results; returns the names
    written. A named figure whose results are missing raises FileNotFoundError. With all, manifest
    entries and files that nobody builds any more are removed."""
    wanted = list(names)
    if unknown := [name for name in wanted if name not in FIGURES]:
        raise ValueError(f"figures {unknown} are unknown; known: {', '.join(FIGURES)}")
    skipped = () if wanted else skipped_figures(results)
    written = [name for name in wanted or FIGURES if name not in skipped]
    for name in written:
        figure, frame, inputs = build(name, results)
        with style():
            write_figure(figure, frame, name, inputs, folder=folder)
    if not wanted:
        _prune(folder or repo_root() / "paper_figures")
    return written


def _prune(folder: Path) -> None:
    manifest = read_manifest(folder)
    for name in [name for name in manifest if name not in FIGURES]:
        for file in manifest.pop(name)["files"]:
            (folder / file).unlink(missing_ok=True)
    write_json(folder / MANIFEST, manifest)


def _rendered(figure: Figure, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def _state(path: Path, digest: str) -> str:
    if not path.is_file():
        return "is missing"
    return "" if _sha256(path.read_bytes()) == digest else "has changed"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
