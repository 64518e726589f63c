"""The local router: a small Qwen2-architecture language model in this process.

Concurrent episodes are decided together: requests that arrive while the event loop is busy are
collected and sampled as one batch.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging as transformers_logging

from xrouter.catalog import Price
from xrouter.episode import Decision, State, TokenTrace
from xrouter.policies.codec import Codec
from xrouter.policies.engine import Engine, Prompt, Sample
from xrouter.tools import parse_tool_calls

transformers_logging.disable_progress_bar()
IDLE_TICKS = 12


def build_model(
    vocab_size: int,
    *,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate_size: int = 384,
    max_positions: int = 1024,
    seed: int = 0,
) -> Qwen2ForCausalLM:
    """A randomly initialised Qwen2 of the given size, with tied embeddings."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=intermediate_size,
            max_position_embeddings=max_positions,
            tie_word_embeddings=True,
            attention_dropout=0.0,
            use_cache=True,
        )
    )


@dataclass(slots=True)
class _Pending:
    prompt: Prompt
    future: asyncio.Future[Sample]


class LocalPolicy:
    """Routes with a :class:`Codec` and an :class:`Engine`.

    ``greedy`` takes the most likely token (evaluation, serving); otherwise tokens are sampled
    from a stream keyed by (episode seed, turn). ``threaded`` keeps the event loop responsive
    while sampling, at the price of batches that depend on timing.
    """

    def __init__(
        self,
        codec: Codec,
        engine: Engine,
        *,
        price: Price | None = None,
        greedy: bool = False,
        threaded: bool = False,
        name: str = "xrouter-local",
    ) -> None:
        self.codec = codec
        self.engine = engine
        self.price = price or Price()
        self.greedy = greedy
        self.threaded = threaded
        self.name = name
        self._pending: list[_Pending] = []
        self._flusher: asyncio.Task[None] | None = None

    async def decide(self, state: State) -> Decision:
        root, tail = self.codec.encode(state)
        seed = (state.seed, len(state.turns))
        prompt = Prompt(root, tail, seed, self.codec.grammar(state))
        future: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(prompt, future))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.ensure_future(self._flush())
        sample = await future
        return self._decision((*root, *tail), sample, state)

    def _decision(self, prompt: tuple[int, ...], sample: Sample, state: State) -> Decision:
        text = self.codec.decode(sample.ids, state)
        content, calls, errors = parse_tool_calls(text)
        return Decision(
            content=content,
            tool_calls=calls,
            parse_errors=errors,
            input_tokens=len(prompt),
            output_tokens=len(sample.ids),
            cost_usd=self.price.cost(len(prompt), len(sample.ids)),
            trace=TokenTrace(prompt, sample.ids, sample.logprobs, sample.choices),
        )

    async def _flush(self) -> None:
        """Wait until no further request arrives for a few turns of the loop, then sample."""
        while self._pending:
            quiet, known = 0, len(self._pending)
            while quiet < IDLE_TICKS:
                await asyncio.sleep(0)
                quiet = quiet + 1 if len(self._pending) == known else 0
                known = len(self._pending)
            batch = [p for p in self._pending if not p.future.cancelled()]
            self._pending = []
            if batch:
                await self._sample(batch)

    async def _sample(self, batch: list[_Pending]) -> None:
        prompts = [item.prompt for item in batch]
        try:
            if self.threaded:
                samples = await asyncio.to_thread(self.engine.generate, prompts, greedy=self.greedy)
            else:
                samples = self.engine.generate(prompts, greedy=self.greedy)
        except Exception as error:  # every waiting request must hear of it
            for item in batch:
                if not item.future.done():
                    item.future.set_exception(error)
            return
        for item, sample in zip(batch, samples, strict=True):
            if not item.future.done():
                item.future.set_result(sample)


def save_policy(folder: Path, model: Qwen2ForCausalLM, codec: Codec) -> None:
    """Write a Hugging Face checkpoint plus ``tokenizer.json`` and ``router.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    codec.save(folder)


def checkpoint_folder(path: str | Path) -> Path:
    """The checkpoint inside a run folder (``policy/``), or the folder itself."""
    base = Path(path)
    for folder in (base / "policy", base):
        if (folder / "router.json").is_file():
            return folder
    raise FileNotFoundError(
        f"{path}: no trained router here (expected router.json in it or in its policy/ folder)"
    )


def load_model(folder: Path) -> Qwen2ForCausalLM:
    """The language model of a checkpoint folder, in float32."""
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def load_policy(
    path: str | Path,
    *,
    greedy: bool = True,
    threaded: bool = False,
    device: str = "cpu",
    threads: int = 1,
) -> LocalPolicy:
    """Load a trained router from a run folder or a checkpoint folder.

    ``threads`` is torch's thread count for the whole process. One is the safe choice for a model
    this small: two that wait for each other on a busy machine can be ten times slower.
    """
    torch.set_num_threads(threads)
    folder = checkpoint_folder(path)
    codec = Codec.load(folder)
    model = load_model(folder)
    model.to(torch.device(device)).eval()  # type: ignore[arg-type]
    meta = json.loads((folder / "router.json").read_text(encoding="utf-8"))
    engine = Engine(model, pad_id=codec.pad_id, end_id=codec.end_id)
    return LocalPolicy(
        codec, engine, greedy=greedy, threaded=threaded, name=meta.get("name", "xrouter-local")
    )
