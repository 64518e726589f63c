"""What every notebook starts with."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import matplotlib.pyplot as plt

from xrouter.provenance import repo_root


def setup() -> Path:
    """The repository's figure style, no progress bars and no look-ups; returns the repository."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    warnings.filterwarnings("ignore", message="IProgress not found")
    root = repo_root()
    plt.style.use(root / "configs" / "figures.mplstyle")
    return root
