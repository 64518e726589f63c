"""The curves of a recorded comparison as one tidy frame, for tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

ROUTER = "router"
SINGLE = "single model"
BASELINE = "baseline"


def curves_frame(result: Mapping[str, Any], singles: Mapping[str, tuple[float, float]]) -> Any:
    """One row per policy and dial position of an ``xrouter eval compare`` result.

    ``singles`` maps model ids to (accuracy as a fraction, USD per 1,000 queries) on the same test
    queries. Columns: world, kind, policy, setting, accuracy, usd_per_1k, n.
    """
    rows = [
        {"kind": SINGLE, "policy": model, "setting": "", "accuracy": acc, "usd_per_1k": usd}
        for model, (acc, usd) in singles.items()
    ]
    reports = {ROUTER: result["router"], **result["baselines"]}
    for name, report in reports.items():
        for point in report["curve"]:
            rows.append(
                {
                    "kind": ROUTER if name == ROUTER else BASELINE,
                    "policy": name,
                    "setting": str(point.get("cost_weight", point.get("setting", ""))),
                    **point["test"],
                }
            )
    oracle = result["oracle"]
    rows.append(
        {
            "kind": "oracle",
            "policy": "oracle",
            "setting": "",
            "accuracy": oracle["accuracy"],
            "usd_per_1k": oracle["usd_per_1k"],
        }
    )
    return pd.DataFrame(rows).assign(world=result["world"], n=result["n"]["test"])
