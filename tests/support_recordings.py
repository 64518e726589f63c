"""Small recordings in the three-file format, made up for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

MODELS = {"tiny": 0.1, "small": 0.2, "medium": 1.0, "large": 10.0}
SKILL = {
    "gsm": {"tiny": 0.6, "small": 0.7, "medium": 0.8, "large": 0.95},
    "crux": {"tiny": 0.3, "small": 0.4, "medium": 0.9, "large": 0.6},
}
WORDS = {"gsm": "apples trains coins eggs price", "crux": "def return list[0] assert lambda"}


def frames(
    n: int = 40, seed: int = 0, prefix: str = "q"
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Queries, outcomes and prices: ``n`` queries each of two tasks, four models."""
    rng = np.random.default_rng(seed)
    queries, outcomes = [], []
    for task, words in WORDS.items():
        for i in range(n):
            query_id, text = f"{task}:{prefix}{i}", " ".join(rng.permutation(words.split()))
            queries.append(
                {"query_id": query_id, "task": task, "query": f"{text} {i}", "gold": f"# {i}"}
            )
            for model, price in MODELS.items():
                right = rng.random() < SKILL[task][model]
                tokens = int(rng.integers(50, 150))
                outcomes.append(
                    {
                        "query_id": query_id,
                        "task": task,
                        "model": model,
                        "answer": str(i) if right else f"wrong {rng.integers(4)}",
                        "correct": int(right),
                        "input_tokens": 100,
                        "output_tokens": tokens,
                        "cost_usd": price * (100 + tokens) / 1e6,
                    }
                )
    prices = [
        {"model": m, "input_usd_per_million": p, "output_usd_per_million": p}
        for m, p in MODELS.items()
    ]
    return pd.DataFrame(queries), pd.DataFrame(outcomes), pd.DataFrame(prices)


def write(
    folder: Path, queries: pd.DataFrame, outcomes: pd.DataFrame, prices: pd.DataFrame
) -> Path:
    """Write the three files without checking them."""
    folder.mkdir(parents=True, exist_ok=True)
    queries.to_parquet(folder / "queries.parquet", index=False)
    outcomes.to_parquet(folder / "outcomes.parquet", index=False)
    prices.to_csv(folder / "prices.csv", index=False)
    return folder


def recording(folder: Path, n: int = 40, seed: int = 0, prefix: str = "q") -> Path:
    return write(folder, *frames(n, seed, prefix))
