import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from xrouter.provenance import repo_root
from xrouter.report import figures, plots, tables
from xrouter.report.labels import place_labels

RESULTS = repo_root() / "results"


@pytest.fixture(scope="module")
def points() -> pd.DataFrame:
    return tables.read_published(RESULTS)


@pytest.fixture(scope="module")
def pareto() -> Figure:
    return figures.build("published_pareto")[0]


def toy(**columns: list) -> pd.DataFrame:
    frame = {
        "panel": ["A"] * 3,
        "system": ["cheap", "dear", "mine"],
        "kind": ["single model", "single model", "router"],
        "quality": [0.5, 0.9, 0.8],
        "cost_usd": [0.001, 0.1, 0.01],
        "world": ["simulated"] * 3,
    }
    return pd.DataFrame(frame | columns)


# Tables


def test_published_scores_are_fractions_and_every_row_names_its_world(points):
    assert points["quality"].between(0, 1).all()
    assert (points["world"] == "published").all()
    assert points.groupby("panel").size().to_dict() == dict.fromkeys(
        tables.BENCHMARK_NAMES.values(), 11
    )
    gpt5 = points[(points["system"] == "GPT-5") & (points["panel"] == "MT-Bench")]
    assert gpt5["quality"].item() == pytest.approx(0.93019)


def test_published_numbers_name_their_source():
    raw = pd.read_csv(RESULTS / tables.PUBLISHED)
    assert raw["source"].str.contains("2510.08439").all()


def test_an_unknown_benchmark_is_refused_by_name(tmp_path):
    raw = pd.read_csv(RESULTS / tables.PUBLISHED)
    raw.loc[0, "benchmark"] = "NewBench"
    (tmp_path / "paper").mkdir()
    raw.to_csv(tmp_path / tables.PUBLISHED, index=False)
    with pytest.raises(ValueError, match=r"benchmark has unknown values \['NewBench'\]"):
        tables.read_published(tmp_path)


def test_fourteen_of_eighteen_published_router_points_are_dominated_by_a_single_model(points):
    found = tables.dominated_by(points)
    assert (len(found), found["dominated"].sum()) == (18, 14)
    gpqa = found[(found["panel"] == "GPQA-Diamond") & (found["system"] == "xRouter-7B-λ1")]
    assert gpqa["by"].item() == "GPT-5-mini"
    assert (found["by"] != "").equals(found["dominated"])


def test_an_equal_point_does_not_dominate_and_one_better_in_one_respect_does():
    same = toy(quality=[0.8, 0.8, 0.8], cost_usd=[0.01, 0.02, 0.01])
    assert not tables.dominated_by(same)["dominated"].any()
    cheaper = toy(quality=[0.8, 0.8, 0.8], cost_usd=[0.005, 0.02, 0.01])
    assert tables.dominated_by(cheaper)["by"].item() == "cheap"
    elsewhere = toy(panel=["B", "B", "A"], quality=[0.9, 0.9, 0.8], cost_usd=[0.001, 0.001, 0.01])
    assert not tables.dominated_by(elsewhere)["dominated"].any()


def test_the_wide_table_shows_percent_and_dollars_per_thousand(points):
    wide = tables.published_table(points)
    assert wide.index[0] == "GPT-4.1"
    assert wide.shape == (11, 12)
    assert wide.loc["GPT-5", "AIME25 %"] == pytest.approx(73.33)
    assert wide.loc["GPT-5", "AIME25 $/1k"] == pytest.approx(48.16)
    assert wide.loc["GPT-5", "LiveBench $/run"] == pytest.approx(35.863581)


def test_cost_utility_is_quality_per_dollar_and_free_points_have_none():
    frame = tables.cost_utility(toy(cost_usd=[0.0, 0.1, 0.01]))
    assert list(frame["utility"]) == pytest.approx([9.0, 80.0])


def test_markdown_aligns_numbers_and_escapes_bars():
    frame = pd.DataFrame({"name": ["a|b", "c"], "x": [1234.5, float("nan")], "n": [1, 2]})
    assert tables.markdown(frame) == (
        "| name | x | n |\n|---|---:|---:|\n| a\\|b | 1,234.50 | 1 |\n| c | – | 2 |"
    )
    assert tables.markdown(frame.set_index("name")).startswith("| name | x | n |")


# Plots


def markers(ax) -> dict[tuple[float, float], str]:
    """Face colour of each single-point line, by position."""
    lines = [line for line in ax.lines if len(line.get_xdata()) == 1]
    return {
        (float(x.get_xdata()[0]), round(float(x.get_ydata()[0]), 6)): x.get_markerfacecolor()
        for x in lines
    }


def test_dominated_points_are_hollow_and_the_others_full():
    frame = toy(quality=[0.5, 0.9, 0.4])
    with figures.style():
        ax = plots.cost_quality(frame).axes[0]
    faces = markers(ax)
    assert faces[(0.01, 40.0)] == "white"
    assert faces[(0.001, 50.0)] != "white"
    assert faces[(0.1, 90.0)] != "white"


def test_the_frontier_is_a_staircase_that_never_promises_more_than_was_reached():
    with figures.style():
        ax = plots.cost_quality(toy()).axes[0]
    (line,) = [line for line in ax.lines if len(line.get_xdata()) > 1]
    corners = np.column_stack([line.get_xdata(), line.get_ydata()])
    assert corners[:-1].tolist() == [
        [0.001, 50.0],
        [0.01, 50.0],
        [0.01, 80.0],
        [0.1, 80.0],
        [0.1, 90.0],
    ]


def test_every_point_is_labelled_inside_its_panel_and_no_two_labels_overlap(pareto, points):
    pareto.draw_without_rendering()
    assert [ax.get_title(loc="left") for ax in pareto.axes] == list(points["panel"].unique())
    for ax in pareto.axes:
        notes = [t for t in ax.texts if isinstance(t, Annotation)]
        rows = points[points["panel"] == ax.get_title(loc="left")]
        assert sorted(t.get_text() for t in notes) == sorted(rows["system"])
        text_boxes = [super(Annotation, t).get_window_extent() for t in notes]
        frame = ax.get_window_extent().padded(1)
        assert all(frame.containsx(b.x0) and frame.containsx(b.x1) for b in text_boxes)
        assert all(frame.containsy(b.y0) and frame.containsy(b.y1) for b in text_boxes)
        assert not any(
            a.shrunk(0.98, 0.9).overlaps(b.shrunk(0.98, 0.9))
            for i, a in enumerate(text_boxes)
            for b in text_boxes[:i]
        )


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)), min_size=1, max_size=8, unique=True
    )
)
def test_labels_of_scattered_points_do_not_overlap(xy):
    figure = Figure(figsize=(7, 5))
    ax = figure.add_subplot(xlim=(0, 1), ylim=(0, 1))
    figure.draw_without_rendering()
    names = [f"model-{i}" for i in range(len(xy))]
    boxes = place_labels(ax, np.array(xy), names, ["black"] * len(xy))
    assert len(ax.texts) == len(xy)
    assert not any(
        a.shrunk(0.98, 0.9).overlaps(b.shrunk(0.98, 0.9))
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )


def test_figures_say_that_published_numbers_were_not_measured_here(pareto):
    assert "not measured here" in pareto.get_supxlabel()


def test_an_interval_is_drawn_where_the_frame_has_one():
    frame = toy(quality_low=[0.4, 0.8, 0.7], quality_high=[0.6, 1.0, 0.9])
    with figures.style():
        (bars,) = plots.cost_quality(frame).axes[0].collections
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [
        pytest.approx([40, 60]),
        pytest.approx([80, 100]),
        pytest.approx([70, 90]),
    ]


def test_systems_stand_in_one_order_the_best_on_top():
    frame = tables.cost_utility(toy())
    with figures.style():
        ax = plots.cost_utility_dots(frame).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cheap", "mine", "dear"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


# Files


def write_toy(folder: Path, frame: pd.DataFrame, name: str = "toy") -> dict:
    with figures.style():
        figure = plots.cost_quality(frame)
        return figures.write_figure(
            figure, frame, name, [RESULTS / tables.PUBLISHED], folder=folder
        )


def test_a_figure_is_written_as_pdf_png_and_the_data_it_plots(tmp_path):
    write_toy(tmp_path, toy())
    assert (tmp_path / "toy.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "toy.csv"), toy())


def test_equal_figures_give_equal_bytes_and_no_dates(tmp_path):
    first = write_toy(tmp_path / "a", toy())
    assert write_toy(tmp_path / "b", toy()) == first
    pdf = (tmp_path / "a" / "toy.pdf").read_bytes()
    assert b"CreationDate" not in pdf
    assert write_toy(tmp_path / "c", toy(quality=[0.5, 0.9, 0.7])) != first


def test_the_manifest_names_world_command_inputs_and_the_hash_of_every_file(tmp_path):
    write_toy(tmp_path, toy(), "b")
    write_toy(tmp_path, toy(), "a")
    manifest = json.loads((tmp_path / "MANIFEST.json").read_text())
    assert list(manifest) == ["a", "b"]
    entry = manifest["b"]
    assert entry["command"] == "xrouter figures --only b"
    assert entry["world"] == ["simulated"]
    assert list(entry["inputs"]) == ["results/paper/system_table.csv"]
    for file, digest in entry["files"].items():
        assert hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() == digest


def build_toy(results: Path) -> figures.Built:
    return plots.cost_quality(toy()), toy(), [results / tables.PUBLISHED]


def test_regenerating_writes_every_figure_and_drops_what_nobody_builds(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {"toy": build_toy})
    write_toy(tmp_path, toy(), "orphan")
    assert figures.regenerate(folder=tmp_path) == ["toy"]
    assert figures.stale_figures(tmp_path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "MANIFEST.json",
        "toy.csv",
        "toy.pdf",
        "toy.png",
    ]


def test_stale_figures_are_found_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {"toy": build_toy, "new": build_toy})
    write_toy(tmp_path, toy())
    write_toy(tmp_path, toy(), "orphan")
    (tmp_path / "toy.csv").write_text("altered")
    (tmp_path / "toy.pdf").unlink()
    assert figures.stale_figures(tmp_path) == [
        "new: not written yet",
        "orphan: no builder in FIGURES",
        "toy: toy.pdf is missing",
        "toy: toy.csv has changed",
    ]


def test_an_unknown_figure_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"figures \['nope'\] are unknown; known: published_pareto"
    ):
        figures.regenerate(["nope"])


def test_a_missing_result_is_named_with_the_command_that_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"system_table\.csv is missing; `make reproduce`"):
        figures.build("published_pareto", tmp_path)


def test_the_callers_plot_settings_do_not_reach_the_figures():
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 30}), figures.style():
        assert mpl.rcParams["font.size"] == 8


def test_committed_figures_belong_to_the_committed_results():
    assert figures.stale_figures() == [], "run `make figures`"


def test_committed_figures_hold_no_path_of_a_machine():
    folder = repo_root() / "paper_figures"
    for path in [*folder.glob("*.csv"), folder / figures.MANIFEST]:
        assert not re.search(r"/(?:home|root|work|tmp|Users)/", path.read_text(encoding="utf-8"))
