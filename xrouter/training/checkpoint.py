"""Checkpoints that survive ``kill -9``: a folder is complete or it does not exist.

A checkpoint holds the policy (Hugging Face format), the optimizer, torch's RNG state and the
step, which is also the data position: everything drawn in step k is seeded by (seed, k).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from xrouter.policies.codec import Codec
from xrouter.policies.local import load_model, save_policy
from xrouter.provenance import write_json


def save_checkpoint(
    run: Path, step: int, model: Qwen2ForCausalLM, codec: Codec, optimizer: torch.optim.Optimizer,
    *, keep: int = 2,
) -> Path:  # fmt: skip
    """Write ``run/checkpoints/step_…``; older ones beyond ``keep`` are removed afterwards."""
    final = run / "checkpoints" / f"step_{step:06d}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_policy(partial / "policy", model, codec)
    torch.save(
        {"optimizer": optimizer.state_dict(), "torch_rng": torch.get_rng_state()},
        partial / "optimizer.pt",
    )
    write_json(partial / "state.json", {"step": step})
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step_*") if (p / "state.json").is_file())


def load_checkpoint(folder: Path, model: Qwen2ForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """Load weights, optimizer and RNG in place; returns the step."""
    model.load_state_dict(load_model(folder / "policy").state_dict())
    state: dict[str, Any] = torch.load(folder / "optimizer.pt", weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_rng"])
    return int(json.loads((folder / "state.json").read_text(encoding="utf-8"))["step"])
