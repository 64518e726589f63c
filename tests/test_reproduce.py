import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from xrouter.config import ConfigError
from xrouter.reproduce import (
    Declared,
    Entry,
    NotebookFailed,
    cleaned,
    code_digest,
    entry_digest,
    in_order,
    load_series,
    parameter_names,
    read_stamp,
    run_series,
    select,
)


def notebook(*cells: str, parameters: str = "n = 1"):
    code = [new_code_cell(source) for source in cells]
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    return new_notebook(cells=[new_markdown_cell("# A <title>"), first, *code])


def add(root: Path, name: str, *cells: str, **kw) -> None:
    (root / "notebooks").mkdir(exist_ok=True)
    nbformat.write(notebook(*cells, **kw), root / "notebooks" / f"{name}.ipynb")


def configure(root: Path, name: str, text: str) -> None:
    folder = root / "configs" / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)


def executed(root: Path, name: str, profile: str = "offline") -> nbformat.NotebookNode:
    return nbformat.read(root / "results" / "executed" / profile / f"{name}.ipynb", as_version=4)


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    return [o.text for c in notebook.cells for o in c.get("outputs", []) if "text" in o]


# Order, selection, parameters: no kernel needed


def entries(**after: list[str]) -> list[Entry]:
    return [Entry(n, Path(n), declared=Declared(after=tuple(a))) for n, a in after.items()]


def test_notebooks_run_by_number_unless_one_needs_a_later_one():
    series = entries(a01=[], a02=["a04"], a03=[], a04=["a03"])
    assert [e.name for e in in_order(series)] == ["a01", "a03", "a04", "a02"]


def test_notebooks_that_wait_for_each_other_are_named():
    with pytest.raises(ConfigError, match="a02, a03 wait for each other"):
        in_order(entries(a01=[], a02=["a03"], a03=["a02"]))


def test_a_dependency_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"a01: after names unknown \['a09'\]"):
        in_order(entries(a01=["a09"]))


def test_only_takes_numbers_and_names():
    series = [Entry(n, Path(n)) for n in ("01_intro", "05_train", "09_pareto")]
    assert [e.name for e in select(series, ["09", "01_intro"])] == ["01_intro", "09_pareto"]
    assert select(series, [""]) == series
    with pytest.raises(ConfigError, match=r"--only 5: no such notebook; there are 01_intro, 05_"):
        select(series, ["5"])


def test_parameters_are_the_names_assigned_in_the_tagged_cell():
    cell = "n: int = 1\nname = 'x'\na = b = 2  # note"
    assert parameter_names(notebook("other = 3", parameters=cell)) == ["n", "name", "a", "b"]


def test_a_parameter_that_the_notebook_does_not_have_is_refused(tmp_path):
    add(tmp_path, "01_a")
    configure(tmp_path, "smoke", "notebooks: {01_a: {n: 2, steps: 3}}")
    with pytest.raises(ConfigError, match=r"smoke\.yaml: 01_a has no parameter steps; it has n"):
        load_series(tmp_path, "smoke")


@pytest.mark.parametrize("name", ["offline", "series"])
def test_a_config_for_a_notebook_that_does_not_exist_is_refused(tmp_path, name):
    add(tmp_path, "01_a")
    configure(tmp_path, name, "notebooks: {02_b: {}}")
    with pytest.raises(ConfigError, match=rf"{name}\.yaml: no notebook named 02_b; there are 01_a"):
        load_series(tmp_path, "offline")


def test_an_unknown_profile_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="profile='quick'; use one of smoke, offline, full"):
        load_series(tmp_path, "quick")
    with pytest.raises(ConfigError, match=r"no notebook named NN_title\.ipynb"):
        load_series(tmp_path, "smoke")


def test_smoke_results_are_never_written_back(tmp_path):
    with pytest.raises(ConfigError, match="too small to commit"):
        run_series(tmp_path, profile="smoke", update=True)


# What makes a run out of date


@pytest.fixture
def small(tmp_path: Path) -> Path:
    add(tmp_path, "01_a", "print(n)")
    configure(tmp_path, "offline", "notebooks: {01_a: {n: 5}}")
    configure(tmp_path, "series", "notebooks: {01_a: {inputs: [data, 'results/*.csv']}}")
    for path in ("xrouter/m.py", "configs/models.yaml", "data/x.csv", "results/y.csv"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("1")
    return tmp_path


def digest(root: Path) -> str:
    (entry,) = load_series(root, "offline")
    return entry_digest(entry, root, code_digest(root))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("xrouter/m.py", "2"),
        ("xrouter/new.py", ""),
        ("configs/models.yaml", "2"),
        ("data/x.csv", "2"),
        ("data/new.csv", "1"),
        ("results/y.csv", "2"),
        ("configs/notebooks/offline.yaml", "notebooks: {01_a: {n: 6}}"),
    ],
)
def test_a_change_of_code_config_input_or_parameter_makes_a_run_out_of_date(small, path, text):
    before = digest(small)
    (small / path).write_text(text)
    assert digest(small) != before


def test_a_change_of_the_notebooks_source_makes_a_run_out_of_date(small):
    before = digest(small)
    add(small, "01_a", "print(n + 1)")
    assert digest(small) != before


@pytest.mark.parametrize("path", ["configs/notebooks/full.yaml", "README.md", "data2/x.csv"])
def test_what_a_notebook_does_not_depend_on_leaves_it_up_to_date(small, path):
    before = digest(small)
    (small / path).parent.mkdir(exist_ok=True)
    (small / path).write_text("notebooks: {}")
    assert digest(small) == before


def test_outputs_and_injected_parameters_leave_a_notebook_up_to_date(small):
    before = digest(small)
    path = small / "notebooks" / "01_a.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[-1].outputs = [new_output("stream", text="5\n")]
    book.cells.insert(2, new_code_cell("n = 5", metadata={"tags": ["injected-parameters"]}))
    nbformat.write(book, path)
    assert digest(small) == before


def test_a_missing_input_says_what_to_run_first(small):
    series = "notebooks: {01_a: {inputs: [results/runs/x], after: []}}"
    configure(small, "series", series)
    with pytest.raises(ConfigError, match="01_a: input results/runs/x is missing; run the noteb"):
        digest(small)


def test_cleaned_notebooks_hold_no_timing_version_or_path_of_the_machine(tmp_path):
    book = notebook("x")
    cell = book.cells[-1]
    cell.metadata.update(papermill={"duration": 1}, execution={"iopub.status.busy": "now"})
    cell.outputs = [
        new_output("stream", text=f"{tmp_path}/results/a.csv and {Path.home()}/x\n"),
        new_output("stream", text="/tmp/ipykernel_42/99.py:3: UserWarning\n"),
        new_output("display_data", data={"text/plain": f"{sys.prefix}/lib"}),
    ]
    book.metadata.update(papermill={"duration": 1}, language_info={"version": "3.11.7"})
    text = nbformat.writes(cleaned(book, tmp_path))
    for trace in (
        str(tmp_path),
        str(Path.home()),
        sys.prefix,
        "duration",
        "iopub",
        "3.11",
        "99.py",
    ):
        assert trace not in text
    assert "./results/a.csv and ~/x" in text
    assert str(tmp_path) in book.cells[-1].outputs[0].text


def test_what_was_printed_bit_by_bit_is_one_output(tmp_path):
    book = notebook("print()")
    book.cells[-1].outputs = [
        new_output("stream", text="a\n"),
        new_output("stream", text="b\n"),
        new_output("stream", name="stderr", text="c\n"),
        new_output("stream", text="d\n"),
    ]
    outputs = cleaned(book, tmp_path).cells[-1].outputs
    assert [(o.name, o.text) for o in outputs] == [
        ("stdout", "a\nb\n"),
        ("stderr", "c\n"),
        ("stdout", "d\n"),
    ]
    assert len(book.cells[-1].outputs) == 4


# Real runs


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> tuple[Path, list[str]]:
    """A series of two notebooks that ran once: the second reads what the first writes."""
    root = tmp_path_factory.mktemp("series")
    write = "from pathlib import Path\nPath('../results/out.txt').write_text(str(n))\nprint(n)"
    add(root, "01_write", write)
    add(root, "02_read", "print('read', open('../results/out.txt').read())\nimport os\nos.getcwd()")
    configure(root, "offline", "notebooks: {01_write: {n: 7}}")
    configure(
        root,
        "series",
        "notebooks:\n  01_write: {outputs: [results/out.txt]}\n"
        "  02_read: {after: [01_write], inputs: [results/out.txt]}",
    )
    lines: list[str] = []
    run_series(root, update=True, echo=lines.append)
    return root, lines


def test_a_run_reports_each_notebook_and_writes_executed_copies(ran):
    root, lines = ran
    assert [line.split(" in ")[0] for line in lines] == [
        "[1/2] 01_write: running",
        "[1/2] 01_write: done",
        "[2/2] 02_read: running",
        "[2/2] 02_read: done",
        "report: results/executed/offline/index.html",
    ]
    assert printed(executed(root, "01_write")) == ["7\n"]
    assert printed(executed(root, "02_read"))[0] == "read 7\n"
    assert not list((root / "results" / "executed").rglob("*running*"))


def test_the_report_links_the_notebooks_and_escapes_their_titles(ran):
    folder = ran[0] / "results" / "executed" / "offline"
    page = (folder / "index.html").read_text()
    assert '<a href="02_read.html">A &lt;title&gt;</a>' in page
    assert "n=7" in page
    assert "read 7" in (folder / "02_read.html").read_text()


def test_updated_notebooks_hold_outputs_and_counts_and_the_values_that_were_used(ran):
    book = nbformat.read(ran[0] / "notebooks" / "01_write.ipynb", as_version=4)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert [c.execution_count for c in code] == [1, 2, 3]
    assert [c.metadata.get("tags") for c in code[:2]] == [["parameters"], ["injected-parameters"]]
    assert printed(book) == ["7\n"]
    assert "xrouter" not in book.metadata
    assert str(ran[0]) not in (ran[0] / "notebooks" / "02_read.ipynb").read_text()


def test_a_second_run_does_nothing_and_changes_no_committed_byte(ran):
    root, _ = ran
    before = {p.name: p.read_bytes() for p in (root / "notebooks").iterdir()}
    lines: list[str] = []
    outcomes = run_series(root, update=True, echo=lines.append)
    assert [o.status for o in outcomes] == ["kept", "kept"]
    assert lines[:2] == ["[1/2] 01_write: up to date", "[2/2] 02_read: up to date"]
    assert {p.name: p.read_bytes() for p in (root / "notebooks").iterdir()} == before


def test_the_same_run_again_gives_the_same_file(ran):
    root, _ = ran
    before = executed(root, "01_write")
    run_series(root, only=["01"], force=True, echo=lambda _: None)
    after = executed(root, "01_write")
    assert before.cells == after.cells


def test_a_missing_output_is_made_again_and_what_read_it_is_kept_when_it_is_the_same(ran):
    root, _ = ran
    (root / "results" / "out.txt").unlink()
    outcomes = run_series(root, echo=lambda _: None)
    assert [o.status for o in outcomes] == ["ran", "kept"]


def test_a_failing_notebook_is_named_with_cell_and_error_and_the_command_fails(tmp_path):
    add(tmp_path, "01_bad", "x = 1", "# divide\ny = x / 0", "z = 1")
    done = command(tmp_path, "reproduce", "--profile", "smoke")
    assert done.returncode == 1
    assert "01_bad: code cell 3 (# divide): ZeroDivisionError: division by zero" in done.stderr
    assert "results/executed/smoke/01_bad.failed.ipynb" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_stamp(tmp_path / "results" / "executed" / "smoke" / "01_bad.ipynb") == {}


def test_a_kernel_that_dies_is_named_with_its_cell(tmp_path):
    add(tmp_path, "01_dies", "x = 1", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookFailed, match=r"01_dies: code cell 3 \(import os, signal\): Dead"):
        run_series(tmp_path, profile="smoke", echo=lambda _: None)


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    wait = "import os, time\nwhile not os.path.exists('go'):\n    time.sleep(0.05)"
    add(tmp_path, "01_quick", "print(n)")
    add(tmp_path, "02_slow", wait)
    folder = tmp_path / "results" / "executed" / "smoke"
    with start(tmp_path, "reproduce", "--profile", "smoke") as process:
        wait_for(lambda: (folder / ".02_slow.running.ipynb").is_file())
        process.send_signal(signal.SIGKILL)
    first = (folder / "01_quick.ipynb").read_bytes()
    assert not (folder / "02_slow.ipynb").exists()
    (tmp_path / "notebooks" / "go").touch()
    outcomes = run_series(tmp_path, profile="smoke", echo=lambda _: None)
    assert [o.status for o in outcomes] == ["kept", "ran"]
    assert (folder / "01_quick.ipynb").read_bytes() == first


def test_a_half_written_copy_counts_as_not_run(tmp_path):
    (tmp_path / "x.ipynb").write_text(json.dumps({"metadata": {}})[:-3])
    assert read_stamp(tmp_path / "x.ipynb") == {}
    assert read_stamp(tmp_path / "none.ipynb") == {}


def environment(root: Path) -> dict[str, str]:
    return os.environ | {"XROUTER_ROOT": str(root)}


def command(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", "from xrouter.cli import main; main()", *args]
    return subprocess.run(
        line, env=environment(root), capture_output=True, text=True, timeout=120, check=False
    )


def start(root: Path, *args: str) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-c", "from xrouter.cli import main; main()", *args]
    return subprocess.Popen(line, env=environment(root), stdout=subprocess.DEVNULL)


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
