"""Training end to end at toy size: learning, resuming after kill -9, and clear refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from support_recordings import frames, write

from xrouter.config import ConfigError
from xrouter.training.trainer import TIME_COLUMNS, append_row, train_from_config, truncate_rows

CONFIG = """
name: toy
world: recorded
recorded: {recording}
threads: 1
max_turns: 2
data: {{train: 0.7, validation: 0.3, test: 0}}
policy: {{hidden_size: 32, layers: 2, heads: 2, kv_heads: 1, intermediate_size: 64,
          vocab_size: 480, query_tokens: 12, max_new_tokens: 16}}
warmstart: {{prompts: 60, samples_per_prompt: 6, epochs: 25, prompts_per_batch: 10,
             learning_rate: 5.0e-3}}
dial: {{values: [0.3], evaluate: [0.3]}}
curriculum: {{start: 1.0}}
dapo: {{steps: {steps}, prompts_per_step: 8, samples_per_prompt: 6, micro_prompts: 4,
        learning_rate: 2.0e-3, max_gen_batches: 3}}
evaluate_every: 20
checkpoint_every: 2
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:  # type: ignore[no-untyped-def]
    return write(tmp_path_factory.mktemp("recording"), *frames(30))


def config_file(folder: Path, recording: Path, steps: int) -> Path:
    path = folder / "toy.yaml"
    path.write_text(CONFIG.format(recording=recording, steps=steps))
    return path


def metrics(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "metrics.csv").drop(columns=list(TIME_COLUMNS))


def start(config: Path, run: Path, *extra: str) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from xrouter.training.trainer import *;"
        "train_from_config(sys.argv[1], out=Path(sys.argv[2]),"
        " resume=Path(sys.argv[2]) if len(sys.argv) > 3 else None)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(config), str(run), *extra],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for_rows(run: Path, rows: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "metrics.csv"
        if path.is_file() and len(path.read_text().splitlines()) > rows:
            return
        time.sleep(0.02)
    raise AssertionError("training did not get as far as it should")


def test_killed_training_resumes_to_the_same_metrics_as_an_unbroken_run(
    tmp_path: Path, recording: Path
) -> None:
    config = config_file(tmp_path, recording, steps=7)
    whole = train_from_config(config, out=tmp_path / "whole")

    torn = tmp_path / "torn"
    process = start(config, torn)
    wait_for_rows(torn, 4, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (torn / "summary.json").exists()
    with open(torn / "metrics.csv", "a") as handle:
        handle.write("5,0.1")
    assert start(config, torn, "resume").wait(timeout=180) == 0

    pd.testing.assert_frame_equal(metrics(torn), metrics(whole), rtol=1e-6)
    for name in ("validation.csv", "splits.json"):
        assert (torn / name).read_text() == (whole / name).read_text()


def test_dapo_raises_the_reward_on_a_toy_recording(tmp_path: Path, recording: Path) -> None:
    run = train_from_config(config_file(tmp_path, recording, steps=60), out=tmp_path / "run")
    curve = pd.read_csv(run / "validation.csv")
    first, last = curve.iloc[0], curve.iloc[-1]
    assert last.reward > first.reward + 2 * first.reward_sem
    assert {"policy", "summary.json", "config.yaml", "provenance.json"} <= {
        p.name for p in run.iterdir()
    }


def test_the_kept_policy_is_the_one_of_the_best_validation(tmp_path: Path, recording: Path) -> None:
    run = train_from_config(
        config_file(tmp_path, recording, steps=6), ["evaluate_every=2"], out=tmp_path / "run"
    )
    summary = json.loads((run / "summary.json").read_text())
    curve = pd.read_csv(run / "validation.csv")
    best = int(curve.loc[curve.reward.idxmax()].step)
    assert summary["kept_step"] == best
    folders = {int(p.name.split("_")[1]): p for p in (run / "checkpoints").iterdir()}
    weights = (run / "policy" / "model.safetensors").read_bytes()
    for step, folder in folders.items():
        same = (folder / "policy" / "model.safetensors").read_bytes() == weights
        assert same == (step == best)


def test_resuming_with_other_settings_is_refused_and_names_them(
    tmp_path: Path, recording: Path
) -> None:
    config = config_file(tmp_path, recording, steps=1)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(config.read_text())
    with pytest.raises(ConfigError, match="seed"):
        train_from_config(config, ["seed=9"], resume=run)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dapo.lr=1", r"dapo\.lr: unknown key; known here: .*learning_rate"),
        ("dapo.clip_low=2", r"dapo\.clip_low"),
        ("dapo.advantage_scale=grp", r"dapo\.advantage_scale"),
        ("dapo.prompts_per_step=7", "divisible"),
        ("world=live", "world"),
        ("recorded=null", "recorded=DIR"),
        ("policy.heads=5", "heads"),
        ("dial.values=[]", r"dial\.values"),
        ("warmstart.epochs=0", r"warmstart\.epochs"),
    ],
)
def test_bad_settings_are_refused_by_name(
    tmp_path: Path, recording: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_from_config(config_file(tmp_path, recording, 1), [override], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_recording_is_named(tmp_path: Path) -> None:
    config = config_file(tmp_path, tmp_path / "nowhere", steps=1)
    with pytest.raises((FileNotFoundError, ValueError), match="nowhere"):
        train_from_config(config, out=tmp_path / "run")


def test_truncating_drops_later_rows_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    for step in (1, 2, 3):
        append_row(path, {"step": step, "reward": 0.5})
    path.write_text(path.read_text() + "4,")
    truncate_rows(path, 2)
    assert pd.read_csv(path).step.tolist() == [1, 2]
