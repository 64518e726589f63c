"""Starting vLLM with the trained router: the right flags, and a wait until it answers."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MODULE = "vllm.entrypoints.openai.api_server"
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What to serve and how. ``python`` is the interpreter of another environment that has vLLM;
    ``extra`` is handed on to vLLM as it is."""

    model: str
    served_name: str = "router-tool-rl"
    host: str = "127.0.0.1"
    port: int = 8000
    tensor_parallel: int = 1
    max_model_len: int = 32_768
    python: str | None = None
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port={self.port}; must lie in 1..65535")
        if self.tensor_parallel < 1:
            raise ValueError(f"tensor_parallel={self.tensor_parallel}; must be at least 1")
        if self.max_model_len < 256:
            raise ValueError(f"max_model_len={self.max_model_len}; must be at least 256")


def vllm_command(options: HostOptions) -> list[str]:
    """The command that serves the router: Hermes tool calls, chosen by the model itself."""
    return [
        *_launcher(options),
        "--served-model-name",
        options.served_name,
        "--host",
        options.host,
        "--port",
        str(options.port),
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "hermes",
        "--tensor-parallel-size",
        str(options.tensor_parallel),
        "--max-model-len",
        str(options.max_model_len),
        *options.extra,
    ]


def _launcher(options: HostOptions) -> list[str]:
    """``vllm serve`` where the command is there; the module otherwise, which third-party CPU
    builds (of another package name) need."""
    if options.python is None and shutil.which("vllm") and _is_installed("vllm"):
        return ["vllm", "serve", options.model]
    return [options.python or sys.executable, "-m", MODULE, "--model", options.model]


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_can_run(options: HostOptions) -> None:
    """Raise FileNotFoundError where the command cannot be started."""
    launcher = _launcher(options)
    if launcher[0] == "vllm" or (options.python and Path(options.python).is_file()):
        return
    if options.python:
        raise FileNotFoundError(f"python={options.python}: no such interpreter")
    if importlib.util.find_spec("vllm") is None:
        raise FileNotFoundError(
            "vLLM is not installed here; install the gpu extra (pip install 'xrouter[gpu]'), or "
            "give --python of an environment that has it"
        )


def run(options: HostOptions, *, ready_timeout_s: float, say: Callable[[str], None]) -> int:
    """Start vLLM, tell when it is ready, and stay until it ends; returns its exit status.

    SIGTERM and SIGINT are passed on. Raises TimeoutError when it is not ready in time.
    """
    check_can_run(options)
    process = start(vllm_command(options))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, _frame: process.send_signal(got))
    try:
        seconds = wait_until_ready(process, health_url(options), ready_timeout_s)
        say(f"ready after {seconds:.0f} s: http://{options.host}:{options.port}/v1")
        return process.wait()
    finally:
        stop(process)


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, env={**os.environ, "VLLM_NO_USAGE_STATS": "1"})


def stop(process: subprocess.Popen[bytes], grace_s: float = 20.0) -> None:
    """End the process, by force where it does not go."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def health_url(options: HostOptions) -> str:
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    return f"http://{host}:{options.port}/health"


def wait_until_ready(
    process: subprocess.Popen[bytes], url: str, timeout_s: float, poll_s: float = POLL_S
) -> float:
    """Seconds until ``url`` answered 200.

    Raises RuntimeError when the process ends first, TimeoutError when the time is up.
    """
    started = time.monotonic()
    while time.monotonic() - started < timeout_s:
        if (status := process.poll()) is not None:
            raise RuntimeError(f"the server ended with status {status} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                if reply.status == 200:
                    return time.monotonic() - started
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(poll_s)
    raise TimeoutError(f"{url} did not answer within {timeout_s:.0f} s")
