"""The training config: every field is documented where it is defined."""

# ruff: noqa: RUF012 -- pydantic copies mutable defaults
from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from xrouter.config import StrictModel

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


class DataConfig(StrictModel):
    """Which tasks. ``train``/``validation``/``test`` are counts in the simulated world and
    fractions of the recording in the recorded one."""

    seed: int = 0
    train: Annotated[float, Field(gt=0)] = 1200
    validation: Annotated[float, Field(gt=0)] = 300
    test: Annotated[float, Field(ge=0)] = 600
    models: list[str] | None = None  # restrict a recording to these models


class PoolConfig(StrictModel):
    """Per-sample pools; see :class:`xrouter.data.pools.PoolSampler`."""

    fixed: dict[str, Share] = {"all": 1.0}
    ranges: dict[str, tuple[int, int]] = {
        "premium": (1, 4), "standard": (1, 4), "budget": (1, 4), "specialized": (0, 2)
    }  # fmt: skip
    evaluate: str = "all"  # the pool of validation and of the headline numbers


class PolicyConfig(StrictModel):
    """Size of the from-scratch router."""

    hidden_size: Positive = 128
    layers: Positive = 4
    heads: Positive = 4
    kv_heads: Positive = 2
    intermediate_size: Positive = 384
    vocab_size: Positive = 1024
    query_tokens: Positive = 48  # head and tail of the request that the router reads
    max_pool: Positive = 12  # models shown; a larger pool is shortlisted by its cards
    max_new_tokens: Positive = 24  # per turn


class WarmstartConfig(StrictModel):
    """Supervised start on random valid strategies."""

    prompts: Positive = 640
    samples_per_prompt: Positive = 8
    epochs: Positive = 3
    prompts_per_batch: Positive = 12
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3


class DialConfig(StrictModel):
    """Cost weights λ that training draws from, one per group."""

    values: list[Weight] = [0.0, 0.02, 0.05, 0.12, 0.3]
    evaluate: list[Weight] = [0.02, 0.12]  # reported during training


class RewardSection(StrictModel):
    form: Literal["linear", "gated"] = "linear"
    normalization: Literal["reference", "raw", "log"] = "reference"
    cap: float | None = None  # bound of λ·cost; None: unbounded


class CurriculumConfig(StrictModel):
    """See :class:`xrouter.data.curriculum.Curriculum`; start = 1 turns it off."""

    start: Annotated[float, Field(gt=0, le=1)] = 0.4
    full_at: Share = 0.4
    mix: Share = 0.2


class OverlongConfig(StrictModel):
    """Soft penalty on the router's own tokens per episode."""

    enabled: bool = True
    max_length: Positive = 72
    buffer: Positive = 24


class DapoConfig(StrictModel):
    """Decoupled clip and dynamic sampling policy optimization."""

    steps: Positive = 100
    prompts_per_step: Positive = 64
    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    minibatches: Positive = 2  # optimizer steps per rollout
    micro_prompts: Positive = 16  # prompts per forward pass (gradient accumulation)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    final_lr_fraction: Share = 0.1  # linear decay to this share of the learning rate
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    grad_clip: Annotated[float, Field(gt=0)] = 1.0
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.28
    dual_clip: Annotated[float, Field(gt=1)] = 10.0
    entropy_bonus: Annotated[float, Field(ge=0)] = 0.01  # on routing choices; decays to 0
    # "group" is DAPO as defined; it blows the small cost differences of an all-correct group up to
    # the size of right against wrong, and the router then learns thrift before it learns routing
    advantage_scale: Literal["group", "batch", "none"] = "batch"
    credit: Literal["outcome", "turn"] = "turn"
    dynamic_sampling: bool = True
    max_gen_batches: Positive = 10  # rollout batches per step while groups have no spread


class TrainConfig(StrictModel):
    """A training run: world, policy, warm start, DAPO."""

    name: str = "cpu"
    seed: int = 0
    world: Literal["simulated", "recorded"] = "simulated"
    recorded: Path | None = None  # folder of a recording; needed by world: recorded
    device: str = "cpu"  # or cuda
    threads: Positive = 1  # two are 1.8 times as fast on an idle machine, far slower on a busy one
    mode: Literal["agent", "simple"] = "agent"
    max_turns: Positive = 3
    data: DataConfig = DataConfig()
    pool: PoolConfig = PoolConfig()
    policy: PolicyConfig = PolicyConfig()
    warmstart: WarmstartConfig = WarmstartConfig()
    dial: DialConfig = DialConfig()
    reward: RewardSection = RewardSection()
    curriculum: CurriculumConfig = CurriculumConfig()
    overlong: OverlongConfig = OverlongConfig()
    dapo: DapoConfig = DapoConfig()
    keep: Literal["best", "last"] = "best"  # by mean validation reward over dial.evaluate
    evaluate_every: Positive = 20  # steps between validations
    checkpoint_every: Positive = 10  # steps between checkpoints

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.world == "recorded" and self.recorded is None:
            raise ValueError("world: recorded needs the folder of a recording: recorded=DIR")
        if self.dapo.prompts_per_step % self.dapo.minibatches:
            raise ValueError(
                f"dapo.prompts_per_step={self.dapo.prompts_per_step} must be divisible by "
                f"dapo.minibatches={self.dapo.minibatches}"
            )
        if self.policy.hidden_size % self.policy.heads or self.policy.heads % self.policy.kv_heads:
            raise ValueError("policy: heads must divide hidden_size, and kv_heads divide heads")
        if self.overlong.enabled and self.overlong.buffer > self.overlong.max_length:
            raise ValueError(
                f"overlong.buffer={self.overlong.buffer} exceeds max_length="
                f"{self.overlong.max_length}"
            )
        if not self.dial.values:
            raise ValueError("dial.values is empty; give at least one cost weight")
        return self
