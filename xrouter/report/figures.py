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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from xrouter.provenance import portable_path, repo_root, write_atomic, write_json
from xrouter.report import plots, tables

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


FIGURES: dict[str, Callable[[Path], Built]] = {
    "published_pareto": published_pareto,
    "published_cost_utility": published_cost_utility,
}


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


def stale_figures(folder: Path | None = None) -> list[str]:
    """What is wrong with the written figures: missing or altered files, inputs that changed
    since, entries nobody builds any more. Empty when all is well."""
    folder = folder or repo_root() / "paper_figures"
    manifest = read_manifest(folder)
    problems = [f"{name}: not written yet" for name in FIGURES if name not in manifest]
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


def regenerate(
    names: Iterable[str] = (), *, results: Path | None = None, folder: Path | None = None
) -> list[str]:
    """Build and write the named figures, or all; returns the names written. With all, manifest
    entries and files that nobody builds any more are removed."""
    wanted = list(names) or list(FIGURES)
    if unknown := [name for name in wanted if name not in FIGURES]:
        raise ValueError(f"figures {unknown} are unknown; known: {', '.join(FIGURES)}")
    for name in wanted:
        figure, frame, inputs = build(name, results)
        with style():
            write_figure(figure, frame, name, inputs, folder=folder)
    if set(wanted) == set(FIGURES):
        _prune(folder or repo_root() / "paper_figures")
    return wanted


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
