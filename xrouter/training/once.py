"""Train unless it has been done: for notebooks and scripts that need a trained run.

Training runs in a process of its own, so that it works where an event loop is already running (a
notebook), stops when the caller is interrupted, and leaves its log in the run folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from xrouter.config import ConfigError, load_config
from xrouter.provenance import code_hash, repo_root, write_json
from xrouter.training.config import TrainConfig

CODE = ("data", "fleets", "policies", "training")
LOG = "train.log"


def train_once(
    config: str | Path,
    overrides: Iterable[str] = (),
    *,
    run: Path,
    echo: Callable[[str], None] = print,
    poll_s: float = 1.0,
) -> bool:
    """Bring ``run`` to the state that ``config`` with ``overrides`` describes; returns whether
    anything had to be trained.

    A complete run of equal config is kept, and ``echo`` is told if the code has changed since; an
    incomplete one of equal config and code is resumed from its last checkpoint; any other is set
    aside as ``<run>.old<n>``. ``echo`` hears one line per validation. Raises ConfigError for a bad
    config and RuntimeError, with the end of the log, when training fails.
    """
    extra = list(overrides)
    wanted = load_config(config, TrainConfig, extra)
    stamp = {"code": code_hash(CODE)}
    same_config, same_code = _config_of(run) == wanted, _stamp_of(run) == stamp
    if same_config and (run / "summary.json").is_file():
        since = "" if same_code else "; the code has changed since, delete the folder to train anew"
        echo(f"{run.name}: already trained with this config, kept{since}")
        return False
    same = same_config and same_code
    if not same and run.exists():
        aside = _free_name(run)
        run.rename(aside)
        echo(f"{run.name}: trained with another config or code; set aside as {aside.name}")
    resume = same and any((run / "checkpoints").glob("step_*"))
    if resume:
        echo(f"{run.name}: continuing from its last checkpoint")
    else:
        (run / "config.yaml").unlink(missing_ok=True)  # of a run that ended before it began
    write_json(run / "once.json", stamp)
    _run_process(Path(config), run, extra, resume, echo, poll_s)
    return True


def _config_of(run: Path) -> TrainConfig | None:
    try:
        return load_config(run / "config.yaml", TrainConfig)
    except ConfigError:
        return None


def _stamp_of(run: Path) -> dict[str, str]:
    path = run / "once.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _free_name(run: Path) -> Path:
    number = 1
    while (aside := run.with_name(f"{run.name}.old{number}")).exists():
        number += 1
    return aside


def _run_process(
    config: Path,
    run: Path,
    overrides: list[str],
    resume: bool,
    echo: Callable[[str], None],
    poll_s: float,
) -> None:
    command = [sys.executable, "-m", "xrouter.training.once", str(config.resolve())]
    command += [str(run.resolve()), "resume" if resume else "start", *overrides]
    environment = os.environ | {"TQDM_MININTERVAL": "5"}
    seen = len(_rows(run)) if resume else 0
    with open(run / LOG, "ab") as log:
        child = subprocess.Popen(command, cwd=repo_root(), stdout=log, stderr=log, env=environment)
        try:
            while child.poll() is None:
                time.sleep(poll_s)
                seen = _echo_rows(run, seen, echo)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    _echo_rows(run, seen, echo)
    if child.returncode:
        raise RuntimeError(f"training failed, see {run.name}/{LOG}: {_last_line(run / LOG)}")


def _rows(run: Path) -> pd.DataFrame:
    """The validation rows that are complete so far."""
    path = run / "validation.csv"
    if not path.is_file():
        return pd.DataFrame()
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole.count("\n") < 2:
        return pd.DataFrame()
    lines = [line.split(",") for line in whole.splitlines()]
    return pd.DataFrame(lines[1:], columns=lines[0]).astype(float)


def _echo_rows(run: Path, seen: int, echo: Callable[[str], None]) -> int:
    rows = _rows(run)
    for _, row in rows.iloc[seen:].iterrows():
        echo(
            f"step {row['step']:3.0f}, λ={row['cost_weight']:g}: held-out reward "
            f"{row['reward']:.3f} ± {1.96 * row['reward_sem']:.3f}, accuracy "
            f"{row['accuracy']:.3f}, ${row['usd_per_1k']:.2f} per 1k, {row['calls']:.2f} calls"
        )
    return max(seen, len(rows))


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


def main(arguments: list[str]) -> None:
    """``config run start|resume [key=value …]``: what the child process does."""
    from xrouter.training.trainer import train_from_config

    config, folder, how, *overrides = arguments
    run = Path(folder)
    if how == "resume":
        train_from_config(config, overrides, resume=run)
    else:
        train_from_config(config, overrides, out=run)


if __name__ == "__main__":
    main(sys.argv[1:])
