"""Run the notebook series: what is out of date, in order, with the parameters of a profile.

A profile (``configs/notebooks/<profile>.yaml``) gives parameters; ``series.yaml`` beside it says
which notebook needs which, and which files they read. Executed copies go to
``results/executed/<profile>/`` and carry a digest of all that went into them, so that a second
run, or one after a crash, does only what is left.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import nbformat
from nbformat import NotebookNode
from pydantic import Field

from xrouter.config import ConfigError, StrictModel, load_config
from xrouter.provenance import content_hash, git_commit, write_atomic

PROFILES = ("smoke", "offline", "full")
INJECTED = "injected-parameters"
Echo = Callable[[str], None]
T = TypeVar("T", bound=StrictModel)


class Declared(StrictModel):
    """What ``series.yaml`` says of one notebook; paths are relative to the repository.

    ``after``: notebooks that must come first. ``inputs``: files, folders or globs whose content
    makes a run out of date. ``outputs``: files without which a run does not count as done.
    """

    after: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


class SeriesConfig(StrictModel):
    notebooks: dict[str, Declared] = Field(default_factory=dict)


class ProfileConfig(StrictModel):
    """``notebooks`` maps a notebook's name to values for its parameters cell."""

    description: str = ""
    notebooks: dict[str, dict[str, Any]] = Field(default_factory=dict)


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message names it, the cell and the executed copy."""


@dataclass(frozen=True)
class Entry:
    """One notebook of the series under one profile."""

    name: str
    source: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)
    declared: Declared = field(default_factory=Declared)

    @property
    def notebook(self) -> NotebookNode:
        return nbformat.read(self.source, as_version=4)

    @property
    def title(self) -> str:
        return notebook_title(self.notebook) or self.name


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook: ``ran`` or ``kept``, and where its executed copy is."""

    entry: Entry
    status: str
    seconds: float
    path: Path


def run_series(
    root: Path,
    *,
    profile: str = "offline",
    only: Sequence[str] = (),
    update: bool = False,
    force: bool = False,
    echo: Echo = print,
) -> list[Outcome]:
    """Run what is out of date and write ``index.html``; raises NotebookFailed at the first error.

    ``only`` names notebooks by number or name. ``force`` runs them whether or not they are out of
    date. ``update`` writes executed outputs back to ``notebooks/``.
    """
    if update and profile == "smoke":
        raise ConfigError("--update: the smoke profile is too small to commit; use offline or full")
    series = load_series(root, profile)
    entries = select(series, only)
    folder = root / "results" / "executed" / profile
    code = code_digest(root)
    outcomes = []
    for number, entry in enumerate(entries, 1):
        mark = f"[{number}/{len(entries)}] {entry.name}"
        outcome = _bring_up_to_date(entry, root, folder, code, force, mark, echo)
        outcomes.append(outcome)
        if update:
            write_atomic(entry.source, _as_text(nbformat.read(outcome.path, as_version=4)))
    write_index(series, folder, profile)
    echo(f"report: {(folder / 'index.html').relative_to(root)}")
    return outcomes


def _bring_up_to_date(
    entry: Entry, root: Path, folder: Path, code: str, force: bool, mark: str, echo: Echo
) -> Outcome:
    digest = entry_digest(entry, root, code)
    path = folder / f"{entry.name}.ipynb"
    stamp = read_stamp(path)
    missing = [o for o in entry.declared.outputs if not (root / o).exists()]
    if not force and not missing and stamp.get("digest") == digest:
        echo(f"{mark}: up to date")
        return Outcome(entry, "kept", float(stamp.get("seconds", 0.0)), path)
    echo(f"{mark}: running")
    started = time.monotonic()
    notebook = execute(entry, folder)
    seconds = round(time.monotonic() - started, 1)
    if absent := [o for o in entry.declared.outputs if not (root / o).exists()]:
        raise NotebookFailed(f"{entry.name}: ran, but did not write {', '.join(absent)}")
    notebook = cleaned(notebook, root)
    notebook.metadata["xrouter"] = {"digest": digest, "seconds": seconds, "commit": git_commit()}
    write_atomic(path, nbformat.writes(notebook) + "\n")
    write_atomic(path.with_suffix(".html"), as_html(notebook, entry.title))
    echo(f"{mark}: done in {seconds:.1f} s")
    return Outcome(entry, "ran", seconds, path)


# The series: which notebooks, in which order, with which parameters


def load_series(root: Path, profile: str) -> list[Entry]:
    """All notebooks ``notebooks/NN_*.ipynb``, each after the ones that it needs, else by number."""
    if profile not in PROFILES:
        raise ConfigError(f"profile={profile!r}; use one of {', '.join(PROFILES)}")
    sources = {p.stem: p for p in sorted((root / "notebooks").glob("[0-9][0-9]*_*.ipynb"))}
    if not sources:
        raise ConfigError("notebooks/: no notebook named NN_title.ipynb is there")
    configs = root / "configs" / "notebooks"
    parameters = _optional(configs / f"{profile}.yaml", ProfileConfig).notebooks
    declared = _optional(configs / "series.yaml", SeriesConfig).notebooks
    for where, names in ((f"{profile}.yaml", parameters), ("series.yaml", declared)):
        if unknown := sorted(set(names) - set(sources)):
            raise ConfigError(
                f"configs/notebooks/{where}: no notebook named {', '.join(unknown)}; "
                f"there are {', '.join(sources)}"
            )
    entries = [
        Entry(name, path, parameters.get(name, {}), declared.get(name, Declared()))
        for name, path in sources.items()
    ]
    for entry in entries:
        check_parameters(entry, profile)
    return in_order(entries)


def _optional(path: Path, schema: type[T]) -> T:
    return load_config(path, schema) if path.is_file() else schema()


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """Dependencies first; among those that may run, the smallest number."""
    waiting = {entry.name: entry for entry in entries}
    for entry in waiting.values():
        if unknown := [a for a in entry.declared.after if a not in waiting]:
            raise ConfigError(f"series.yaml: {entry.name}: after names unknown {unknown}")
    ordered: list[Entry] = []
    while waiting:
        ready = [n for n, e in waiting.items() if not set(e.declared.after) & waiting.keys()]
        if not ready:
            raise ConfigError(f"series.yaml: {', '.join(sorted(waiting))} wait for each other")
        ordered.append(waiting.pop(min(ready)))
    return ordered


def select(entries: Sequence[Entry], only: Sequence[str]) -> list[Entry]:
    """The entries whose number (``05``) or name is in ``only``; all when it is empty."""
    wanted = [item.strip() for item in only if item.strip()]

    def matches(entry: Entry, item: str) -> bool:
        return item in (entry.name, entry.name.split("_")[0])

    for item in wanted:
        if not any(matches(entry, item) for entry in entries):
            names = ", ".join(entry.name for entry in entries)
            raise ConfigError(f"--only {item}: no such notebook; there are {names}")
    return [e for e in entries if not wanted or any(matches(e, item) for item in wanted)]


def check_parameters(entry: Entry, profile: str) -> None:
    known = parameter_names(entry.notebook)
    if unknown := sorted(set(entry.parameters) - set(known)):
        raise ConfigError(
            f"configs/notebooks/{profile}.yaml: {entry.name} has no parameter "
            f"{', '.join(unknown)}; it has {', '.join(known) or 'none'}"
        )


def parameter_names(notebook: NotebookNode) -> list[str]:
    """Names assigned in the cell tagged ``parameters``."""
    names = []
    for cell in notebook.cells:
        if "parameters" not in cell.metadata.get("tags", []):
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.append(node.id)
    return list(dict.fromkeys(names))


# What a run depends on


def code_digest(root: Path) -> str:
    """Hash of the package and of the configs; profiles are left out, since the parameters count
    one by one."""
    files = sorted((root / "xrouter").rglob("*.py"))
    configs = (p for p in (root / "configs").rglob("*") if p.is_file())
    files += sorted(p for p in configs if p.parent.name != "notebooks")
    return _files_digest(files, root)


def entry_digest(entry: Entry, root: Path, code: str) -> str:
    """Hash of all that decides a notebook's outputs. Raises ConfigError for a missing input."""
    files: list[Path] = []
    for pattern in entry.declared.inputs:
        found = sorted(root.glob(pattern))
        files += [p for f in found for p in (sorted(f.rglob("*")) if f.is_dir() else [f])]
        if not found:
            needs = ", ".join(entry.declared.after) or "the notebook that writes it"
            raise ConfigError(f"{entry.name}: input {pattern} is missing; run {needs} first")
    cells = [
        (cell.cell_type, cell.source)
        for cell in entry.notebook.cells
        if INJECTED not in cell.metadata.get("tags", [])
    ]
    data = _files_digest([p for p in files if p.is_file()], root)
    return content_hash([cells, dict(entry.parameters), code, data])


def _files_digest(files: Iterable[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_stamp(path: Path) -> dict[str, Any]:
    """The stamp of an executed copy, or nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["metadata"]["xrouter"])
    except (ValueError, KeyError, TypeError):
        return {}


# Execution


def execute(entry: Entry, folder: Path) -> NotebookNode:
    """Run one notebook in its own kernel, in its own folder. On failure the executed copy is left
    as ``<name>.failed.ipynb``."""
    import papermill

    folder.mkdir(parents=True, exist_ok=True)
    running, failed = folder / f".{entry.name}.running.ipynb", folder / f"{entry.name}.failed.ipynb"
    failed.unlink(missing_ok=True)
    try:
        with kernel_environment():
            papermill.execute_notebook(
                _fresh(entry.notebook),
                str(running),
                parameters=dict(entry.parameters) or None,
                kernel_name="python3",
                language="python",
                extra_arguments=["--log-level=ERROR"],
                progress_bar=sys.stderr.isatty(),
                cwd=str(entry.source.parent),
            )
    except Exception as error:
        if not running.is_file():
            raise
        os.replace(running, failed)
        raise NotebookFailed(_failure(entry, failed, error)) from error
    notebook = nbformat.read(running, as_version=4)
    running.unlink()
    return notebook


KERNEL_ENVIRONMENT = {
    "JUPYTER_PREFER_ENV_PATH": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONHASHSEED": "0",
}


@contextmanager
def kernel_environment() -> Iterator[None]:
    """What kernels inherit: this environment's kernel, figures inline, no look-ups."""
    before = {name: os.environ.get(name) for name in KERNEL_ENVIRONMENT}
    os.environ.update(KERNEL_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _fresh(notebook: NotebookNode) -> NotebookNode:
    """Without the parameters that an earlier run injected: this profile's may be fewer."""
    notebook.cells = [c for c in notebook.cells if INJECTED not in c.metadata.get("tags", [])]
    return notebook


def _failure(entry: Entry, failed: Path, error: Exception) -> str:
    cells = [c for c in nbformat.read(failed, as_version=4).cells if c.cell_type == "code"]
    ran = [c.metadata.get("papermill", {}) for c in cells]
    raised = [i for i, record in enumerate(ran) if record.get("exception")]
    started = [i for i, record in enumerate(ran) if record.get("start_time")]
    if raised or started:
        number = raised[0] if raised else started[-1]
        first = next((x for x in cells[number].source.splitlines() if x.strip()), "")
        where = f"code cell {number + 1} ({first.strip()[:60]})"
    else:
        where = "outside its cells"
    name = getattr(error, "ename", type(error).__name__)
    value = str(getattr(error, "evalue", error)).strip()
    copy = f"results/executed/{failed.parent.name}/{failed.name}"
    return f"{entry.name}: {where}: {name}: {value[:500]}; the executed copy is {copy}"


def cleaned(notebook: NotebookNode, root: Path) -> NotebookNode:
    """A copy without timings, ids, versions and paths of this machine: equal runs, equal files."""
    out = copy.deepcopy(notebook)
    out.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"file_extension": ".py", "name": "python"},
        }
    )
    for cell in out.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if INJECTED in cell.metadata.get("tags", []):
            cell["id"] = INJECTED
        if cell.cell_type == "code":
            outputs = [nbformat.from_dict(_without_paths(o, root)) for o in cell.outputs]
            cell.outputs = _joined_streams(outputs)
    return out


def _joined_streams(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """What was printed bit by bit as one output: how it was cut depends on timing alone."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _without_paths(value: Any, root: Path) -> Any:
    if isinstance(value, dict):
        return {k: _without_paths(v, root) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_paths(v, root) for v in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"/\S*/ipykernel_\d+/\d+\.py", "<cell>", value)
    for folder, shown in ((root, "."), (Path(sys.prefix), "<env>"), (Path.home(), "~")):
        if len(folder.parts) > 1:
            value = re.sub(re.escape(str(folder)) + r"(?![\w-])", shown, value)
    return value


def _as_text(notebook: NotebookNode) -> str:
    """A notebook as it is committed: outputs, but no stamp."""
    notebook.metadata.pop("xrouter", None)
    return nbformat.writes(notebook) + "\n"


# The report


def notebook_title(notebook: NotebookNode) -> str:
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"(?m)^# (.+)$", cell.source)):
            return found.group(1).strip()
    return ""


def as_html(notebook: NotebookNode, title: str) -> str:
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter(embed_images=True).from_notebook_node(
        notebook, resources={"metadata": {"name": title}}
    )
    return str(body)


def write_index(series: Sequence[Entry], folder: Path, profile: str) -> None:
    """``index.html``: the notebooks of the series, with what was run and how long it took."""
    from html import escape

    rows = []
    for entry in series:
        stamp = read_stamp(folder / f"{entry.name}.ipynb")
        name, title = escape(entry.name), escape(entry.title)
        link = f'<a href="{name}.html">{title}</a>' if stamp else title
        given = ", ".join(f"{k}={v}" for k, v in entry.parameters.items()) or "defaults"
        took = f"{stamp['seconds']:.1f} s" if stamp else "not run"
        rows.append(
            f"<tr><td>{name}</td><td>{link}</td><td>{escape(given)}</td>"
            f"<td>{took}</td><td>{escape(str(stamp.get('commit', '')))}</td></tr>"
        )
    page = INDEX_PAGE.format(profile=escape(profile), rows="\n".join(rows))
    write_atomic(folder / "index.html", page)


INDEX_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>xRouter notebooks: {profile}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ border-bottom: 1px solid #ddd; padding: .4rem .6rem; text-align: left;
  vertical-align: top; }}
</style></head><body>
<h1>xRouter notebooks, profile “{profile}”</h1>
<table><tr><th>notebook</th><th>title</th><th>parameters</th><th>time</th><th>commit</th></tr>
{rows}
</table></body></html>
"""
