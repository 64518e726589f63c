"""The curves of a recorded comparison as one tidy frame, for tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from xrouter.report.tables import ROUTER, SINGLE

BASELINE = "baseline"
TARGETS = ("at_100", "at_98", "at_95")
MET = ("met_100", "met_98", "met_95")
DELTAS = ("accuracy_delta", "cost_save", "cost_save_low", "cost_save_high")


def curves_frame(
    result: Mapping[str, Any], singles: Mapping[str, tuple[float, float]]
) -> pd.DataFrame:
    """One row per policy and dial position of an ``xrouter eval compare`` result.

    ``singles`` maps model ids to (accuracy as a fraction, USD per 1,000 queries) on the same test
    queries. Columns: kind, policy, setting, cost_weight (λ, or the position where the dial is a
    list of settings; missing where there is no dial), accuracy, usd_per_1k, at_100, at_98, at_95
    (the position that validation chooses for this share of the best single model's accuracy),
    met_100, met_98, met_95 (whether test accuracy reaches it), and for the positions chosen
    accuracy_delta and cost_save against the best single model, with cost_save_low and
    cost_save_high (95 % interval); world, n.
    """
    rows: list[dict[str, Any]] = [
        {"kind": SINGLE, "policy": model, "setting": "", "accuracy": acc, "usd_per_1k": usd}
        for model, (acc, usd) in singles.items()
    ]
    for row in rows:
        if row["policy"] == result["best_single"]["model"]:
            row |= dict.fromkeys((*TARGETS, *MET), True) | dict.fromkeys(DELTAS, 0.0)
    reports = {ROUTER: result["router"], **result["baselines"]}
    for name, report in reports.items():
        kind = ROUTER if name == ROUTER else BASELINE
        rows += [{"kind": kind, "policy": name, **row} for row in _curve_rows(report)]
    rows.append({"kind": "oracle", "policy": "oracle", "setting": "", **_point(result["oracle"])})
    columns = ["kind", "policy", "setting", "cost_weight", "accuracy", "usd_per_1k"]
    flags = [*TARGETS, *MET]
    frame = pd.DataFrame(rows).reindex(columns=[*columns, *flags, *DELTAS])
    frame[flags] = frame[flags].eq(True)
    return frame.assign(world=result["world"], n=result["n"]["test"])


def _curve_rows(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for position, point in enumerate(report["curve"]):
        row: dict[str, Any] = {"setting": str(point.get("cost_weight", point.get("setting", "")))}
        if len(report["curve"]) > 1:
            row["cost_weight"] = float(point.get("cost_weight", position))
        for target, met in zip(TARGETS, MET, strict=True):
            attempt = report["attempted"][target]
            row[target] = attempt["position"] == position
            row[met] = row[target] and report[target] is not None
            if row[target]:
                saved = attempt["intervals"]["cost_save"]
                bounds = (attempt["accuracy_delta"], attempt["cost_save"], saved["low"])
                row |= dict(zip(DELTAS, (*bounds, saved["high"]), strict=True))
        rows.append(row | _point(point["test"]))
    return rows


def _point(row: Mapping[str, Any]) -> dict[str, float]:
    return {"accuracy": row["accuracy"], "usd_per_1k": row["usd_per_1k"]}
