"""One readable training loop: warm start, then DAPO over episodes, on CPU or CUDA.

A run folder holds ``config.yaml``, ``provenance.json``, ``metrics.csv`` (one row per step, TRL's
names), ``validation.csv``, ``checkpoints/`` and, in the end, ``policy/`` and ``summary.json``.
Killed at any moment, ``--resume`` continues from the last checkpoint to the same metrics.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from tqdm import tqdm

from xrouter.config import ConfigError, load_config
from xrouter.data.curriculum import Curriculum, easiest_first
from xrouter.data.pools import PoolSampler
from xrouter.episode import Episode, Task
from xrouter.orchestrator import Limits, Orchestrator
from xrouter.policies.cards import cards_from_outcomes
from xrouter.policies.codec import Codec, train_tokenizer
from xrouter.policies.engine import Engine
from xrouter.policies.local import LocalPolicy, build_model, save_policy
from xrouter.provenance import provenance, repo_root, write_atomic, write_json
from xrouter.reward import Reward, RewardConfig, reward
from xrouter.training import dapo
from xrouter.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from xrouter.training.config import TrainConfig
from xrouter.training.rollout import (
    Job,
    TokenSequence,
    make_batch,
    own_logprobs,
    roll_out,
    token_sequence,
)
from xrouter.training.warmstart import RandomStrategies, fit, neutral_reply
from xrouter.world import World, open_recorded, open_simulated

TIME_COLUMNS = ("time/rollout_s", "time/update_s")


@dataclass(frozen=True)
class Scored:
    """One rolled-out episode with its reward, tokens and credit per turn."""

    job: Job
    episode: Episode
    reward: Reward
    total: float
    returns: tuple[float, ...]
    sequence: TokenSequence


def train_from_config(
    path: str | Path,
    overrides: Iterable[str] = (),
    *,
    resume: Path | None = None,
    out: Path | None = None,
) -> Path:
    """Train as a config file says; returns the run folder.

    With ``resume`` the run's own saved config decides, and ``path`` must agree with it.
    """
    config = load_config(path, TrainConfig, overrides)
    if resume is not None:
        saved = load_config(resume / "config.yaml", TrainConfig)
        if (differing := _differences(saved, config)) and list(overrides):
            raise ConfigError(f"{resume.name}: cannot resume with other settings: {differing}")
        config, run = saved, resume
    else:
        run = out or _fresh_folder(config.name)
        if (run / "config.yaml").exists():
            raise ConfigError(f"{run}: holds a run already; use --resume or another folder")
        write_atomic(run / "config.yaml", _to_yaml(config))
        stamp = provenance(config=config.model_dump(mode="json"), seed=config.seed)
        write_json(run / "provenance.json", stamp)
    Trainer(config, run).train()
    print(f"run: {run}")
    return run


def _differences(a: TrainConfig, b: TrainConfig) -> str:
    left, right = a.model_dump(mode="json"), b.model_dump(mode="json")
    return ", ".join(k for k in left if left[k] != right[k])


def _fresh_folder(name: str) -> Path:
    base = repo_root() / "results" / "runs" / name
    folder, n = base, 1
    while folder.exists():
        n += 1
        folder = base.with_name(f"{name}-{n}")
    return folder


def _to_yaml(config: TrainConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def open_world(config: TrainConfig) -> World:
    """The world a config trains on."""
    data = config.data
    if config.world == "recorded":
        assert config.recorded is not None
        shares = {"train": data.train, "validation": data.validation, "test": data.test}
        fractions = {name: share for name, share in shares.items() if share}
        world = open_recorded(
            config.recorded, seed=data.seed, fractions=fractions, models=data.models
        )
        world.fleet.require_trainable()  # type: ignore[attr-defined]
        return world
    sizes = {"train": int(data.train), "validation": int(data.validation), "test": int(data.test)}
    return open_simulated(seed=data.seed, sizes=sizes)


class Trainer:
    """Holds a run's world, policy and optimizer; :meth:`train` is the loop."""

    def __init__(self, config: TrainConfig, run: Path) -> None:
        self.config = config
        self.run = run
        torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.world = open_world(config)
        headline = self.world.fleet.catalog.pool(config.pool.evaluate)
        self.reference_usd = self.world.train_table.select(headline).reference_usd()
        self.reward_config = RewardConfig(
            form=config.reward.form,
            normalization=config.reward.normalization,
            reference_usd=self.reference_usd,
            cap=config.reward.cap,
        )
        self.orchestrator = Orchestrator(
            self.world.fleet,
            mode=config.mode,
            limits=Limits(max_turns=config.max_turns, call_timeout_s=None, episode_timeout_s=None),
        )
        self.pools = PoolSampler(self.world.fleet.catalog, config.pool.fixed, config.pool.ranges)
        self.tasks = easiest_first(self.world.splits["train"])
        self.curriculum = Curriculum(**config.curriculum.model_dump())
        self.codec = self._codec()
        self.model = build_model(
            self.codec.tokenizer.get_vocab_size(),
            hidden_size=config.policy.hidden_size,
            layers=config.policy.layers,
            heads=config.policy.heads,
            kv_heads=config.policy.kv_heads,
            intermediate_size=config.policy.intermediate_size,
            seed=config.seed,
        )
        self.model.to(torch.device(config.device))  # type: ignore[arg-type]
        self.policy = self._policy(greedy=False)
        self.judge = self._policy(greedy=True)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.dapo.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.dapo.weight_decay,
        )

    def _codec(self) -> Codec:
        policy, table = self.config.policy, self.world.train_table
        names = self.world.fleet.catalog.models
        texts = [t.query for t in self.world.splits["train"]]
        return Codec(
            train_tokenizer(texts, vocab_size=policy.vocab_size, names=names),
            cards=cards_from_outcomes(table.models, table.quality, table.cost_usd),
            reference_usd=self.reference_usd,
            query_tokens=policy.query_tokens,
            max_pool=policy.max_pool,
            dial=self.config.dial.values,
        )

    def _policy(self, *, greedy: bool) -> LocalPolicy:
        engine = Engine(
            self.model,
            pad_id=self.codec.pad_id,
            end_id=self.codec.end_id,
            max_new_tokens=self.config.policy.max_new_tokens,
        )
        price = self.world.fleet.catalog.router_price
        return LocalPolicy(self.codec, engine, price=price, greedy=greedy)

    def train(self) -> None:
        splits = {name: [t.id for t in tasks] for name, tasks in self.world.splits.items()}
        write_json(self.run / "splits.json", splits)
        done = self._restore()
        steps = self.config.dapo.steps
        with tqdm(total=steps, initial=done, desc="DAPO", unit="step") as bar:
            for step in range(done + 1, steps + 1):
                row = self.step(step)
                append_row(self.run / "metrics.csv", row)
                bar.update()
                bar.set_postfix(
                    reward=f"{row['reward']:.3f}",
                    acc=f"{row['accuracy']:.3f}",
                    usd_1k=f"{1e3 * row['cost/mean_usd']:.3f}",
                )
                if step % self.config.evaluate_every == 0 or step == steps:
                    self.validate(step)
                if step % self.config.checkpoint_every == 0 or step == steps:
                    save_checkpoint(self.run, step, self.model, self.codec, self.optimizer)
        if self.config.keep == "last":
            save_policy(self.run / "policy", self.model, self.codec)
        self._write_summary()

    def _restore(self) -> int:
        """Load the last checkpoint, or do the warm start; returns the number of steps done."""
        if saved := checkpoints(self.run):
            step = load_checkpoint(saved[-1], self.model, self.optimizer)
        else:
            self.warm_start()
            save_checkpoint(self.run, 0, self.model, self.codec, self.optimizer)
            step = 0
        for name in ("metrics.csv", "validation.csv"):
            truncate_rows(self.run / name, step)
        if step == 0:
            self.validate(0)
        return step

    def warm_start(self) -> None:
        """Learn format and variety from random strategies."""
        config = self.config.warmstart
        demonstrator = RandomStrategies(self.codec, _reply)
        rng = np.random.default_rng([self.config.seed, 1])
        jobs = self._jobs(rng, config.prompts, samples=config.samples_per_prompt, progress=1.0)
        episodes = asyncio.run(roll_out(jobs, demonstrator, self.orchestrator))
        groups: dict[int, list[TokenSequence]] = {}
        for job, episode in zip(jobs, episodes, strict=True):
            if (sequence := token_sequence(episode)) is not None:
                groups.setdefault(job.group, []).append(sequence)
        with tqdm(total=100, desc="warm start", unit="%") as bar:
            fit(
                self.model,
                list(groups.values()),
                pad_id=self.codec.pad_id,
                epochs=config.epochs,
                groups_per_batch=config.prompts_per_batch,
                learning_rate=config.learning_rate,
                seed=self.config.seed,
                table=self.codec.choice_table,
                progress=lambda done, loss: _advance(bar, done, loss),
            )

    def _jobs(
        self, rng: np.random.Generator, prompts: int, *, samples: int, progress: float
    ) -> list[Job]:
        """Draw tasks, pools and cost weights; each prompt becomes a group of samples."""
        jobs = []
        drawn: list[Task] = []
        while len(drawn) < prompts:
            want = min(prompts - len(drawn), len(self.tasks))
            drawn += self.curriculum.draw(self.tasks, want, progress, rng)
        for group, task in enumerate(drawn):
            pool = self.pools.draw(rng)
            weight = float(rng.choice(self.config.dial.values))
            for _ in range(samples):
                jobs.append(Job(task, pool, weight, group, int(rng.integers(2**31))))
        return jobs

    def step(self, step: int) -> dict[str, Any]:
        """One DAPO step: roll out, keep informative groups, update; returns its metrics row."""
        started = time.monotonic()
        batch, everything, gen_batches = self._collect(step)
        rolled = time.monotonic()
        updates = self._update(step, batch)
        row: dict[str, Any] = {"step": step, **self._describe(everything), **updates}
        row["gen_batches"] = gen_batches
        row["groups_kept"] = len({(s.job.group) for s in batch})
        row["time/rollout_s"] = round(rolled - started, 3)
        row["time/update_s"] = round(time.monotonic() - rolled, 3)
        return row

    def _collect(self, step: int) -> tuple[list[Scored], list[Scored], int]:
        """Dynamic sampling with over-sampling: (kept, all, rollout batches)."""
        config = self.config.dapo
        progress = self._progress(step)
        kept: list[Scored] = []
        everything: list[Scored] = []
        groups = 0
        for attempt in range(config.max_gen_batches):
            rng = np.random.default_rng([self.config.seed, 2, step, attempt])
            want = config.prompts_per_step - groups // config.samples_per_prompt
            jobs = self._jobs(rng, want, samples=config.samples_per_prompt, progress=progress)
            offset = attempt * config.prompts_per_step
            jobs = [Job(j.task, j.pool, j.cost_weight, j.group + offset, j.seed) for j in jobs]
            scored = self._score(jobs)
            everything += scored
            kept += _informative(scored) if config.dynamic_sampling else scored
            groups = len(kept)
            if groups >= config.prompts_per_step * config.samples_per_prompt:
                return kept, everything, attempt + 1
        return kept, everything, config.max_gen_batches

    def _score(self, jobs: Sequence[Job]) -> list[Scored]:
        episodes = asyncio.run(roll_out(jobs, self.policy, self.orchestrator))
        return [self._scored(j, e) for j, e in zip(jobs, episodes, strict=True)]

    def _scored(self, job: Job, episode: Episode) -> Scored:
        sequence = token_sequence(episode)
        if sequence is None:
            raise RuntimeError(f"task {job.task.id!r}: the policy failed: {episode.note}")
        quality, weight = float(episode.quality or 0.0), job.cost_weight
        costs = [turn.cost_usd for turn in episode.turns]
        whole = reward(quality, episode.cost_usd, weight, self.reward_config)
        overlong = self._overlong(sequence.own_tokens)
        returns = tuple(
            reward(quality, sum(costs[t:]), weight, self.reward_config).total + overlong
            for t in range(len(costs))
        )
        return Scored(job, episode, whole, whole.total + overlong, returns, sequence)

    def _overlong(self, own_tokens: int) -> float:
        config = self.config.overlong
        if not config.enabled:
            return 0.0
        lengths = torch.tensor([own_tokens])
        penalty = dapo.soft_overlong_penalty(
            lengths, max_length=config.max_length, buffer=config.buffer
        )
        return float(penalty[0])

    def _advantages(self, batch: Sequence[Scored]) -> list[list[float]]:
        """One advantage per turn for each episode."""
        groups = torch.tensor([s.job.group for s in batch])
        scale = self.config.dapo.advantage_scale
        weights = torch.tensor([s.job.cost_weight for s in batch])
        if self.config.dapo.credit == "outcome":
            totals = torch.tensor([s.total for s in batch], dtype=torch.float64)
            flat = dapo.group_advantages(totals, groups, scale=scale, strata=weights).tolist()
            return [[a] * len(s.returns) for a, s in zip(flat, batch, strict=True)]
        width = max(len(s.returns) for s in batch)
        returns = torch.zeros(len(batch), width, dtype=torch.float64)
        alive = torch.zeros(len(batch), width, dtype=torch.bool)
        for i, s in enumerate(batch):
            returns[i, : len(s.returns)] = torch.tensor(s.returns, dtype=torch.float64)
            alive[i, : len(s.returns)] = True
        table = dapo.turn_advantages(returns, alive, groups, scale=scale, strata=weights).tolist()
        return [row[: len(s.returns)] for row, s in zip(table, batch, strict=True)]

    def _update(self, step: int, batch: list[Scored]) -> dict[str, float]:
        """Optimizer steps over the kept groups, gradients accumulated in micro-batches."""
        config = self.config.dapo
        lr = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if not batch:
            return {"loss": 0.0, "learning_rate": lr, "grad_norm": 0.0, "entropy": float("nan")}
        bonus = config.entropy_bonus * (1.0 - self._progress(step))
        advantages = self._advantages(batch)
        by_group: dict[int, list[int]] = {}
        for i, s in enumerate(batch):
            by_group.setdefault(s.job.group, []).append(i)
        rng = np.random.default_rng([self.config.seed, 3, step])
        order = [by_group[g] for g in rng.permutation(sorted(by_group)).tolist()]
        self.model.train()
        stats: list[dict[str, float]] = []
        for part in np.array_split(np.arange(len(order)), config.minibatches):
            if len(part):
                rows = [order[i] for i in part]
                stats.append(self._minibatch(rows, batch, advantages, bonus))
        return {"learning_rate": lr} | {k: float(np.mean([s[k] for s in stats])) for k in stats[0]}

    def _minibatch(
        self,
        groups: list[list[int]],
        batch: list[Scored],
        advantages: list[list[float]],
        entropy_bonus: float,
    ) -> dict[str, float]:
        """One optimizer step; the loss is divided by the token count of the whole mini-batch."""
        config = self.config.dapo
        tokens = float(sum(batch[i].sequence.own_tokens for rows in groups for i in rows))
        sums = Counter[str]()
        self.optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(groups), config.micro_prompts):
            rows = [i for rows in groups[start : start + config.micro_prompts] for i in rows]
            micro = make_batch(
                [batch[i].sequence for i in rows], [advantages[i] for i in rows], self.codec.pad_id
            ).to(self.config.device)
            logp, entropy = own_logprobs(self.model, micro, self.codec.choice_table)
            routing = self.codec.choice_table.is_routing(micro.choices[micro.mask])
            entropy = entropy * routing
            loss, clip = dapo.policy_loss(
                logp,
                micro.old_logp[micro.mask],
                micro.advantages[micro.mask],
                torch.ones_like(logp),
                token_count=tokens,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                dual_clip=config.dual_clip,
            )
            (loss - entropy_bonus * entropy.sum() / tokens).backward()
            sums.update(
                {
                    "loss": float(loss.detach()),
                    "entropy": float(entropy.detach().sum()) / tokens,
                    "clip_ratio/low_mean": clip.low / tokens,
                    "clip_ratio/high_mean": clip.high / tokens,
                    "approx_kl": clip.approx_kl / tokens,
                }
            )
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        return dict(sums) | {"grad_norm": float(norm)}

    def _progress(self, step: int) -> float:
        """0 at the first step, 1 at the last."""
        return (step - 1) / max(1, self.config.dapo.steps - 1)

    def _learning_rate(self, step: int) -> float:
        config = self.config.dapo
        warm = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
        decay = 1.0 - (1.0 - config.final_lr_fraction) * self._progress(step)
        return config.learning_rate * warm * decay

    def _describe(self, scored: Sequence[Scored]) -> dict[str, float]:
        """Metrics of all episodes of a step, kept or not, under TRL's names and ours."""
        totals = torch.tensor([s.total for s in scored], dtype=torch.float64)
        groups = torch.tensor([s.job.group for s in scored])
        spread = dapo.informative_groups(totals, groups)
        stds = [float(totals[groups == g].std(unbiased=True)) for g in sorted(set(groups.tolist()))]
        episodes = [s.episode for s in scored]
        return {
            "reward": float(totals.mean()),
            "reward_std": float(np.mean(stds)),
            "frac_reward_zero_std": 1.0 - float(spread.double().mean()),
            "accuracy": float(np.mean([s.reward.quality for s in scored])),
            "cost/mean_usd": float(np.mean([s.reward.cost_usd for s in scored])),
            "cost/normalized": float(np.mean([s.reward.normalized_cost for s in scored])),
            "completions/mean_length": float(np.mean([s.sequence.own_tokens for s in scored])),
            "turns/mean": float(np.mean([len(e.turns) for e in episodes])),
            "routing/calls_mean": float(np.mean([len(e.calls) for e in episodes])),
            "routing/direct_rate": float(np.mean([e.answer_source == "direct" for e in episodes])),
            "routing/select_rate": float(np.mean([e.answer_source == "select" for e in episodes])),
            "routing/error_rate": float(
                np.mean([bool(e.errors) or _unreadable(e) for e in episodes])
            ),
            **self._shares(episodes),
        }

    def _shares(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Share of episodes that called each model."""
        counts = Counter(m for e in episodes for m in {c.model for c in e.calls})
        return {
            f"routing/share/{m}": counts[m] / len(episodes) for m in self.world.fleet.catalog.models
        }

    def validate(self, step: int) -> None:
        """Greedy routing on the validation split at each dial position; appended to
        ``validation.csv``. With ``keep: best`` the policy is saved when it is the best so far."""
        rewards = self._validate(step)
        rows = pd.read_csv(self.run / "validation.csv")
        earlier = rows[rows.step < step].groupby("step").reward.mean()
        if self.config.keep == "best" and not (earlier >= rewards).any():
            save_policy(self.run / "policy", self.model, self.codec)

    def _validate(self, step: int) -> float:
        """Append the rows of one validation; returns the mean reward over the dial."""
        means = []
        tasks = self.world.splits["validation"]
        pool = self.world.fleet.catalog.pool(self.config.pool.evaluate)
        for weight in self.config.dial.evaluate:
            jobs = [Job(t, pool, weight, i, i) for i, t in enumerate(tasks)]
            episodes = asyncio.run(roll_out(jobs, self.judge, self.orchestrator))
            scored = [self._scored(j, e) for j, e in zip(jobs, episodes, strict=True)]
            rewards = np.array([s.reward.total for s in scored])
            row = {
                "step": step,
                "cost_weight": weight,
                "reward": rewards.mean(),
                "reward_sem": rewards.std(ddof=1) / np.sqrt(len(rewards)),
                "accuracy": np.mean([s.reward.quality for s in scored]),
                "usd_per_1k": 1e3 * np.mean([s.reward.cost_usd for s in scored]),
                "turns": np.mean([len(s.episode.turns) for s in scored]),
                "calls": np.mean([len(s.episode.calls) for s in scored]),
                "direct_rate": np.mean([s.episode.answer_source == "direct" for s in scored]),
            }
            append_row(self.run / "validation.csv", row)
            means.append(float(rewards.mean()))
        return float(np.mean(means))

    def _write_summary(self) -> None:
        validation = pd.read_csv(self.run / "validation.csv")
        first, last = validation.step.min(), validation.step.max()
        mean = validation.groupby("step").reward.mean()
        best = mean.index.to_numpy()[mean.to_numpy().argmax()]
        kept = best if self.config.keep == "best" else last
        write_json(
            self.run / "summary.json",
            {
                "world": self.world.kind,
                "data_hash": self.world.data_hash,
                "reference_usd": self.reward_config.reference_usd,
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "warm_start": validation[validation.step == first].to_dict("records"),
                "trained": validation[validation.step == last].to_dict("records"),
                "kept_step": int(kept),
                "kept": validation[validation.step == kept].to_dict("records"),
                "provenance": provenance(
                    config=self.config.model_dump(mode="json"),
                    data=self.world.data_hash,
                    seed=self.config.seed,
                ),
            },
        )


def _reply(task: Task) -> str:
    """A direct answer for demonstrations: fit for small talk, and no use for anything else."""
    if task.domain != "chat":
        return neutral_reply(task)
    from xrouter.data.offline import chat_reply

    return chat_reply(task)


def _unreadable(episode: Episode) -> bool:
    return any(turn.decision.parse_errors for turn in episode.turns)


def _informative(scored: list[Scored]) -> list[Scored]:
    totals = torch.tensor([s.total for s in scored], dtype=torch.float64)
    groups = torch.tensor([s.job.group for s in scored])
    keep = dapo.informative_groups(totals, groups).tolist()
    return [s for s, wanted in zip(scored, keep, strict=True) if wanted]


def _advance(bar: tqdm, done: float, loss: float) -> None:
    bar.update(round(100 * done) - bar.n)
    bar.set_postfix(loss=f"{loss:.3f}")


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one row to a CSV, writing the header first; a row is one ``write``."""
    frame = pd.DataFrame([row])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(frame.to_csv(index=False, header=handle.tell() == 0))


def truncate_rows(path: Path, step: int) -> None:
    """Drop rows after ``step`` (and a torn last line) before a run is continued."""
    if not path.is_file():
        return
    header, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [x for x in lines if x.endswith("\n") and x.count(",") == header.count(",")]
    kept = [x for x in whole if int(x.split(",", 1)[0]) <= step]
    write_atomic(path, header + "".join(kept))
