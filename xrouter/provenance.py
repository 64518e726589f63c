"""Where results come from: repository root, commit, hashes, the command that ran."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any


@cache
def repo_root() -> Path:
    """The folder that holds ``configs/`` and ``notebooks/``, wherever the caller runs.

    ``XROUTER_ROOT`` overrides it for an installed package without a checkout.
    """
    if env := os.environ.get("XROUTER_ROOT"):
        return Path(env).resolve()
    for folder in (Path(__file__).resolve().parent.parent, Path.cwd(), *Path.cwd().parents):
        if (folder / "configs" / "models.yaml").is_file():
            return folder
    raise FileNotFoundError(
        "cannot find the repository (a folder with configs/models.yaml); "
        "set XROUTER_ROOT to a checkout"
    )


def git_commit() -> str:
    """Short commit, with ``+dirty`` when tracked files differ; ``unknown`` outside git."""
    try:
        sha = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "xrouter", "configs")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return sha + ("+dirty" if changed else "")


def _git(*args: str) -> str:
    done = subprocess.run(
        ["git", *args], cwd=repo_root(), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def content_hash(value: Any) -> str:
    """12 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_hash(paths: Iterable[Path]) -> str:
    """12 hex digits of SHA-256 over the bytes of the files, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def code_hash(subpackages: Iterable[str] = ()) -> str:
    """12 hex digits over the sources that decide outcomes: the modules at the top of the package,
    those of the named subpackages, and the model catalog."""
    package = Path(__file__).resolve().parent
    files = sorted(p for p in package.glob("*.py") if p.stem not in ("cli", "reproduce"))
    for name in sorted(subpackages):
        files += sorted((package / name).rglob("*.py"))
    return file_hash([*files, repo_root() / "configs" / "models.yaml"])


def portable_path(path: str | Path) -> str:
    """A path as it may stand in a result: relative to the repository, or its last part."""
    resolved = Path(path).resolve()
    if resolved.is_relative_to(repo_root()):
        return resolved.relative_to(repo_root()).as_posix()
    return resolved.name


def command_line() -> str:
    """The command that runs, without the paths of this machine; ``notebook`` inside a kernel."""
    program = Path(sys.argv[0]).name
    if program in ("ipykernel_launcher.py", "colab_kernel_launcher.py"):
        return "notebook"
    return " ".join([program or "python", *map(_portable_argument, sys.argv[1:])])


def _portable_argument(argument: str) -> str:
    name, eq, value = argument.rpartition("=")
    return name + eq + (portable_path(value) if value.startswith(os.sep) else value)


def provenance(*, config: Any = None, data: Any = None, seed: int | None = None) -> dict[str, Any]:
    """The stamp that every result carries. No absolute path and no environment is in it."""
    return {
        "commit": git_commit(),
        "config_hash": content_hash(config) if config is not None else None,
        "data_hash": data if isinstance(data, str) else content_hash(data) if data else None,
        "seed": seed,
        "command": command_line(),
        "python": platform.python_version(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never half."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: str | Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
