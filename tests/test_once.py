"""Training on demand: a finished run is kept, a cut-off one continues, another one steps aside."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from support_recordings import frames, write

from xrouter.config import ConfigError
from xrouter.training import once
from xrouter.training.once import train_once

CONFIG = """
name: toy
world: recorded
recorded: {recording}
threads: 1
max_turns: 2
data: {{train: 0.7, validation: 0.3, test: 0}}
policy: {{hidden_size: 16, layers: 1, heads: 2, kv_heads: 1, intermediate_size: 32,
          vocab_size: 480, query_tokens: 8, max_new_tokens: 8}}
warmstart: {{prompts: 12, samples_per_prompt: 2, epochs: 1, prompts_per_batch: 6}}
dial: {{values: [0.3], evaluate: [0.3]}}
curriculum: {{start: 1.0}}
dapo: {{steps: 2, prompts_per_step: 4, samples_per_prompt: 2, micro_prompts: 2, minibatches: 1,
        max_gen_batches: 1}}
evaluate_every: 1
checkpoint_every: 1
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    recording = write(folder / "recording", *frames(20))
    path = folder / "toy.yaml"
    path.write_text(CONFIG.format(recording=recording))
    return path


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> tuple[Path, list[str]]:
    run, said = tmp_path_factory.mktemp("runs") / "toy", []
    assert train_once(config, run=run, echo=said.append, poll_s=0.1)
    return run, said


def never(*args):
    raise AssertionError("nothing had to be trained")


def test_training_leaves_a_complete_run_and_says_each_validation(trained):
    run, said = trained
    assert (run / "summary.json").is_file()
    assert len(pd.read_csv(run / "metrics.csv")) == 2
    assert [line.split(":")[0] for line in said] == [f"step {k:3d}, λ=0.3" for k in (0, 1, 2)]
    assert "run:" in (run / once.LOG).read_text()


def test_a_finished_run_of_this_config_is_kept_and_a_change_of_code_is_said(
    config, trained, monkeypatch
):
    monkeypatch.setattr(once, "_run_process", never)
    said = []
    assert not train_once(config, run=trained[0], echo=said.append)
    monkeypatch.setattr(once, "code_hash", lambda parts: "other")
    assert not train_once(config, run=trained[0], echo=said.append)
    assert said[0] == "toy: already trained with this config, kept"
    assert said[1] == said[0] + "; the code has changed since, delete the folder to train anew"


def test_another_config_or_other_code_sets_the_run_aside(config, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(once, "_run_process", lambda *a: started.append(a[2]))
    run = tmp_path / "toy"
    run.mkdir()
    (run / "config.yaml").write_text(config.read_text())  # cut off, by code that is not known
    assert train_once(config, run=run, echo=lambda line: None)
    assert (tmp_path / "toy.old1" / "config.yaml").is_file()
    assert [p.name for p in run.iterdir()] == ["once.json"]
    assert train_once(config, ["seed=3"], run=run, echo=lambda line: None)
    assert (tmp_path / "toy.old2").is_dir()
    assert started == [[], ["seed=3"]]


def test_a_run_that_was_cut_off_goes_on_from_its_checkpoint(config, trained, tmp_path):
    import shutil

    run = tmp_path / "toy"
    shutil.copytree(trained[0], run)
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step_000002")
    said = []
    assert train_once(config, run=run, echo=said.append, poll_s=0.1)
    assert said[0] == "toy: continuing from its last checkpoint"
    columns = ["step", "reward", "accuracy", "cost/mean_usd"]
    whole, continued = (pd.read_csv(r / "metrics.csv")[columns] for r in (trained[0], run))
    pd.testing.assert_frame_equal(continued, whole)


def test_failing_training_says_where_and_why(config, tmp_path, monkeypatch):
    bad = tmp_path / "bad.yaml"
    bad.write_text(config.read_text().replace("recording\n", "nowhere\n"))
    with pytest.raises(RuntimeError, match=r"see toy/train\.log: .*nowhere"):
        train_once(bad, run=tmp_path / "toy", echo=lambda line: None, poll_s=0.1)


def test_a_bad_setting_is_refused_before_anything_starts(config, tmp_path, monkeypatch):
    monkeypatch.setattr(once, "_run_process", never)
    with pytest.raises(ConfigError, match=r"dapo\.stepz"):
        train_once(config, ["dapo.stepz=1"], run=tmp_path / "toy")
    assert not (tmp_path / "toy").exists()
