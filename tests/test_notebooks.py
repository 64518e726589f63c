import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from xrouter.provenance import repo_root
from xrouter.reproduce import PROFILES, load_series, notebook_title

NOTEBOOKS = sorted((repo_root() / "notebooks").glob("*.ipynb"))
ABSOLUTE = re.compile(
    r"""(?<![\w.:/~<])/(?:home|root|Users|work|tmp|var|opt|mnt|content)/[\w.-]+"""
)
SECRET = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----|(?i:authorization: *bearer +[\w.-]{12,})"
)
MAX_LINES = 25
MAX_BYTES = 1_000_000


def problems(text: str) -> list[str]:
    """All that is wrong with a notebook file that is about to be committed."""
    book = nbformat.reads(text, as_version=4)
    code = [c for c in book.cells if c.cell_type == "code" and c.source.strip()]
    found = [*cell_problems(code), *parameter_problems(code)]
    if not notebook_title(book):
        found.append("no title")
    if book.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("kernel is not python3")
    if len(text.encode()) > MAX_BYTES:
        found.append("larger than 1 MB")
    if match := ABSOLUTE.search(text):
        found.append(f"absolute path {match.group()}")
    if SECRET.search(text):
        found.append("something like a secret")
    return found


def cell_problems(code: list) -> list[str]:
    found = []
    counts = [c.execution_count for c in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"not run from top to bottom: execution counts {counts}")
    if any(o.output_type == "error" for c in code for o in c.outputs):
        found.append("an error among the outputs")
    long = [c.source.splitlines()[0] for c in code if len(c.source.splitlines()) > MAX_LINES]
    return found + [f"cell over {MAX_LINES} lines: {first}" for first in long]


def parameter_problems(code: list) -> list[str]:
    tagged = [c for c in code if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        return [f"{len(tagged)} parameters cells"]
    body = ast.parse(tagged[0].source).body
    values = [node.value for node in body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    if len(values) != len(body) or not all(v is not None and is_literal(v) for v in values):
        return ["the parameters cell holds more than plain values: what it derives goes stale"]
    return []


def is_literal(node: ast.AST) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def test_there_are_notebooks_and_they_are_numbered():
    assert NOTEBOOKS, "notebooks/ is empty"
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem) for path in NOTEBOOKS)
    numbers = [path.stem[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_was_run_and_is_fit_to_publish(path: Path):
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_fits_the_parameters_of_the_notebooks(profile):
    assert len(load_series(repo_root(), profile)) == len(NOTEBOOKS)


# The checks themselves, on notebooks with one fault each


def good() -> nbformat.NotebookNode:
    first = new_code_cell("n = 1\nname: str = 'x'", execution_count=1)
    first.metadata["tags"] = ["parameters"]
    last = new_code_cell("print('../results/a.csv', 1/2)", execution_count=2)
    last.outputs = [new_output("stream", text="see https://example.org/home/x and a/tmp/b\n")]
    book = new_notebook(cells=[new_markdown_cell("# Title"), first, last])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    return book


def fault(book: nbformat.NotebookNode, kind: str) -> None:
    title, first, last = book.cells
    secret = "sk-" + "a1B2" * 8
    changes = {
        "no title": lambda: title.update(source="Title"),
        "kernel is not python3": lambda: book.metadata.kernelspec.update(name="python3.12"),
        "not run": lambda: last.update(execution_count=None),
        "not run from": lambda: last.update(execution_count=7),
        "an error": lambda: last.update(outputs=[new_output("error", ename="E", evalue="")]),
        "cell over 25 lines: x": lambda: last.update(source="x\n" * 26),
        "0 parameters cells": lambda: first.metadata.update(tags=[]),
        "2 parameters cells": lambda: last.metadata.update(tags=["parameters"]),
        "the parameters cell": lambda: first.update(source="n = 1\nm = 2 * n"),
        "the parameters cell holds": lambda: first.update(source="import os"),
        "larger than 1 MB": lambda: title.update(source="# T\n" + "y" * MAX_BYTES),
        "absolute path /home/me": lambda: last.update(source="open('/home/me/x')"),
        "absolute path /tmp/run1": lambda: last.outputs[0].update(text="wrote /tmp/run1/a\n"),
        "something like a secret": lambda: last.update(source=f"key = '{secret}'"),
    }
    changes[kind]()


def test_a_good_notebook_has_no_problems():
    assert problems(nbformat.writes(good())) == []


@pytest.mark.parametrize(
    "kind",
    [
        "no title",
        "kernel is not python3",
        "not run",
        "not run from",
        "an error",
        "cell over 25 lines: x",
        "0 parameters cells",
        "2 parameters cells",
        "the parameters cell",
        "the parameters cell holds",
        "larger than 1 MB",
        "absolute path /home/me",
        "absolute path /tmp/run1",
        "something like a secret",
    ],
)
def test_each_fault_is_found_and_named(kind):
    book = good()
    fault(book, kind)
    (problem,) = problems(nbformat.writes(book))
    assert problem.startswith(kind)
