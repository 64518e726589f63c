"""Tables from tidy frames; and what the published numbers say when they are put side by side.

A *tidy point frame* has one row per system and panel: ``panel``, ``system``, ``kind``
("router" or "single model"), ``quality`` in [0, 1], ``cost_usd``, ``world``. Plots and tables of
published and of measured results take the same frame.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

PUBLISHED = Path("paper") / "system_table.csv"
ROUTER, SINGLE = "router", "single model"

# Full score of each published metric; of IFEval's two, the stricter one stands for it.
FULL_SCORE = {"accuracy_0_1": 1.0, "score_0_10": 10.0, "score_0_100": 100.0, "prompt_level": 1.0}
BENCHMARK_NAMES = {
    "LiveCodeBenchv5": "LiveCodeBench v5",
    "GPQADiamond": "GPQA-Diamond",
    "AIME25": "AIME25",
    "MTBench": "MT-Bench",
    "IFEval": "IFEval (prompt)",
    "LiveBench": "LiveBench",
}
COST_UNITS = {"per_query_mean": "USD per query", "run_total": "USD per run"}


def read_published(results: Path) -> pd.DataFrame:
    """The published system table as a tidy point frame, with ``cost_unit``.

    Raises FileNotFoundError without ``results/paper/system_table.csv`` and ValueError for a
    benchmark, metric or unit that is not known here.
    """
    raw = pd.read_csv(results / PUBLISHED)
    raw = raw[raw["metric"] != "instruction_level"]
    for column, known in (
        ("benchmark", BENCHMARK_NAMES),
        ("metric", FULL_SCORE),
        ("cost_unit", COST_UNITS),
    ):
        if unknown := sorted(set(raw[column]) - set(known)):
            raise ValueError(f"{PUBLISHED}: {column} has unknown values {unknown}")
    return pd.DataFrame(
        {
            "panel": raw["benchmark"].map(BENCHMARK_NAMES),
            "system": raw["system"],
            "kind": raw["system"].str.startswith("xRouter").map({True: ROUTER, False: SINGLE}),
            "quality": raw["value"] / raw["metric"].map(FULL_SCORE),
            "cost_usd": raw["cost_usd"],
            "cost_unit": raw["cost_unit"].map(COST_UNITS),
            "world": "published",
        }
    ).reset_index(drop=True)


def published_table(points: pd.DataFrame) -> pd.DataFrame:
    """Wide form: one row per system, for each benchmark the score in % and the cost in USD per
    1,000 queries (per run where only the run's total is published)."""
    per_query = points["cost_unit"] == COST_UNITS["per_query_mean"]
    shown = points.assign(
        score=100 * points["quality"],
        cost=points["cost_usd"].where(~per_query, 1000 * points["cost_usd"]),
    )
    unit = dict(zip(shown["panel"], per_query.map({True: "$/1k", False: "$/run"}), strict=True))
    wide = shown.pivot(index="system", columns="panel", values=["score", "cost"])
    panels = list(dict.fromkeys(shown["panel"]))
    columns = {}
    for panel in panels:
        columns[f"{panel} %"] = wide["score"][panel]
        columns[f"{panel} {unit[panel]}"] = wide["cost"][panel]
    order = list(dict.fromkeys(shown["system"]))
    return pd.DataFrame(columns).loc[order].rename_axis("system")


def dominated_by(points: pd.DataFrame) -> pd.DataFrame:
    """For each router point, the single models that are at least as good for at most the money.

    Columns: panel, system, quality, cost_usd, dominated, by (names joined with ", ").
    """
    rows = []
    for _, point in points[points["kind"] == ROUTER].iterrows():
        rivals = points[(points["kind"] == SINGLE) & (points["panel"] == point["panel"])]
        better = rivals[
            (rivals["quality"] >= point["quality"])
            & (rivals["cost_usd"] <= point["cost_usd"])
            & ~((rivals["quality"] == point["quality"]) & (rivals["cost_usd"] == point["cost_usd"]))
        ]
        rows.append(
            {
                "panel": point["panel"],
                "system": point["system"],
                "quality": point["quality"],
                "cost_usd": point["cost_usd"],
                "dominated": not better.empty,
                "by": ", ".join(better.sort_values("cost_usd")["system"]),
            }
        )
    return pd.DataFrame(rows, columns=["panel", "system", "quality", "cost_usd", "dominated", "by"])


def cost_utility(points: pd.DataFrame) -> pd.DataFrame:
    """The points with ``utility``: quality in [0, 1] per USD. Free points have none."""
    paid = points[points["cost_usd"] > 0]
    return paid.assign(utility=paid["quality"] / paid["cost_usd"]).reset_index(drop=True)


def markdown(frame: pd.DataFrame, *, digits: int = 2) -> str:
    """A GitHub table; numbers to the right, missing values as a dash."""
    flat = frame.reset_index() if frame.index.name else frame
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in flat.dtypes]
    lines = [
        "| " + " | ".join(map(str, flat.columns)) + " |",
        "|" + "|".join("---:" if right else "---" for right in numeric) + "|",
    ]
    for row in flat.itertuples(index=False):
        lines.append("| " + " | ".join(_cell(value, digits) for value in row) + " |")
    return "\n".join(lines)


def _cell(value: object, digits: int) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, float):
        return f"{value:,.{digits}f}"
    return str(value).replace("|", r"\|")
