r"""The simulated world: model answers drawn from a skill model fitted to published scores.

Numbers from this fleet show that the pipeline works. They are *not* evidence about real models.

**Skill.** For model m and benchmark b of domain k, with published score y in percent::

    logit(y) = general_m + offset_mk - hardness_b + noise

fitted by ridge regression (:func:`calibrate`). A model's general skill shrinks to what its price
and thinking predict, and its offset in a domain to 0, so a model without published scores, or a
domain without benchmarks, still has a skill.

**Outcome.** A call is right with probability sigmoid(:data:`INTERCEPT` + skill × :data:`SPREAD`
- difficulty × :data:`STEEPNESS`). Which calls are right is tied together by a Gaussian copula:
the latent score of a call is ``sqrt(RHO_TASK)·z_task + sqrt(RHO_MODEL)·z_task,model + rest``, so
two models' latent scores correlate with :data:`RHO_TASK`, two attempts of one model with
``RHO_TASK + RHO_MODEL``. Wrong answers come from a few distractors per task, shared by all models,
with Zipf weights: agreement of two models is informative, but no proof.

Every draw depends on (world seed, task id, model, attempt) and nothing else: not on the order of
calls, the policy, or the episode's own seed. The three constants above are chosen, not fitted: they
place the best models at 80-90 % and the cheapest at 50-65 % on :mod:`xrouter.data.offline`.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from random import Random
from statistics import NormalDist

import numpy as np

from xrouter.catalog import Catalog, ModelSpec
from xrouter.data.chat import chat_reply
from xrouter.episode import DOMAINS, Completion, Task, World
from xrouter.fleets.distractors import plausible_errors
from xrouter.orchestrator import FleetRequest
from xrouter.verifiers import final_answer, score

# --- skills ------------------------------------------------------------------------------------

#: Which domain a published benchmark tells about; "" tells about general skill only.
BENCHMARK_DOMAINS: Mapping[str, str] = {
    "aime_2024": "math",
    "aime_2025": "math",
    "math_500": "math",
    "mgsm": "math",
    "humaneval": "code",
    "livecodebench": "code",
    "livecodebench_v5": "code",
    "livecodebench_v6": "code",
    "swe_bench_verified": "code",
    "swe_bench_agentless": "code",
    "codeforces_elo": "code",
    "gpqa_diamond": "stem",
    "supergpqa": "stem",
    "mmlu": "stem",
    "mmlu_pro": "stem",
    "hle": "stem",
    "ifeval": "",
    "simpleqa": "",
    "arena_elo": "",
}
#: Domains without benchmarks borrow part of related domains' offsets.
BORROWED: Mapping[str, Mapping[str, float]] = {
    "logic": {"math": 0.5},
    "simulation": {"code": 0.5},
    "table": {"code": 0.25, "stem": 0.25},
}
_OFFSET_DOMAINS = ("math", "code", "stem")
#: Ridge strengths: general skill towards its prior, domain offsets and hardness towards 0.
_RIDGE_GENERAL, _RIDGE_OFFSET, _RIDGE_HARDNESS = 0.6, 0.35, 0.01
#: Elo ratings are log-odds already: this many logits per point.
_LOGITS_PER_ELO = math.log(10.0) / 400.0

INTERCEPT = 3.6
SPREAD = 1.4
STEEPNESS = 5.0


@dataclass(frozen=True, slots=True)
class Skills:
    """Fitted skills on the logit scale: ``general[model]`` (mean 0) and
    ``offsets[model][domain]``."""

    general: Mapping[str, float]
    offsets: Mapping[str, Mapping[str, float]]

    def skill(self, model: str, domain: str) -> float:
        """Skill in a domain, in logits. Raises ValueError for a model that was not fitted."""
        try:
            own = self.offsets[model]
        except KeyError:
            raise ValueError(
                f"model={model!r} has no fitted skill; fitted: {', '.join(self.general)}"
            ) from None
        weights = BORROWED.get(domain, {domain: 1.0})
        return self.general[model] + sum(w * own.get(d, 0.0) for d, w in weights.items())

    def probability(self, model: str, domain: str, difficulty: float) -> float:
        """Chance that one call is right; ``difficulty`` in [0, 1]. Chat is always right."""
        if not 0.0 <= difficulty <= 1.0:
            raise ValueError(f"difficulty={difficulty}; must lie in [0, 1]")
        if domain == "chat":
            return 1.0
        logit = INTERCEPT + SPREAD * self.skill(model, domain) - STEEPNESS * difficulty
        return 1.0 / (1.0 + math.exp(-logit))


def calibrate(catalog: Catalog) -> Skills:
    """Fit :class:`Skills` to the catalog's published scores."""
    models = list(catalog)
    flat = _fit(models, np.zeros(len(models)))[0]
    prior = _price_prior(models, flat)
    general, offsets = _fit(models, prior)
    general = general - general.mean()
    return Skills(
        {m.id: float(g) for m, g in zip(models, general, strict=True)},
        {
            m.id: {d: float(o) for d, o in zip(_OFFSET_DOMAINS, row, strict=True)}
            for m, row in zip(models, offsets, strict=True)
        },
    )


def _fit(models: Sequence[ModelSpec], prior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge fit. Returns general skill, shape (M,), and offsets, shape (M, 3)."""
    observed = _observations(models)
    benchmarks = sorted({b for _, b, _ in observed})
    count, kinds = len(models), len(_OFFSET_DOMAINS)
    penalty = np.repeat(
        [_RIDGE_GENERAL, _RIDGE_OFFSET, _RIDGE_HARDNESS], [count, count * kinds, len(benchmarks)]
    )
    normal, target = np.diag(penalty), np.zeros(len(penalty))
    target[:count] = _RIDGE_GENERAL * prior
    for m, benchmark, value in observed:
        hardness = count * (1 + kinds) + benchmarks.index(benchmark)
        terms = {m: 1.0, hardness: -1.0}
        if domain := BENCHMARK_DOMAINS.get(benchmark, ""):
            terms[count + m * kinds + _OFFSET_DOMAINS.index(domain)] = 1.0
        at, signs = np.array(list(terms)), np.array(list(terms.values()))
        normal[at[:, None], at] += signs[:, None] * signs
        target[at] += signs * value
    solution = _solve(normal, target)
    return solution[:count], solution[count : count * (1 + kinds)].reshape(count, kinds)


def _solve(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Solve a positive definite system by plain elimination.

    LAPACK would give last digits that differ between machines, and its threads wait for seconds
    on a busy one.
    """
    left, right = matrix.copy(), vector.copy()
    for k in range(len(right)):
        factors = left[k + 1 :, k] / left[k, k]
        left[k + 1 :] -= factors[:, None] * left[k]
        right[k + 1 :] -= factors * right[k]
    for k in reversed(range(len(right))):
        right[k] = (right[k] - (left[k, k + 1 :] * right[k + 1 :]).sum()) / left[k, k]
    return right


def _observations(models: Sequence[ModelSpec]) -> list[tuple[int, str, float]]:
    """(model index, benchmark, score on the logit scale); Elo is centred per benchmark."""
    raw = [(i, name, value) for i, m in enumerate(models) for name, value in m.scores.items()]
    elo: dict[str, list[float]] = {}
    for _, name, value in raw:
        if name.endswith("_elo"):
            elo.setdefault(name, []).append(value)
    mean = {name: sum(values) / len(values) for name, values in elo.items()}
    return [
        (i, name, (value - mean[name]) * _LOGITS_PER_ELO if name in mean else _logit(value))
        for i, name, value in raw
    ]


def _logit(percent: float) -> float:
    share = min(0.98, max(0.02, percent / 100.0))
    return math.log(share / (1.0 - share))


def _price_prior(models: Sequence[ModelSpec], general: np.ndarray) -> np.ndarray:
    """General skill as log output price and thinking predict it, from the models with scores.

    Without any scores in the catalog the slopes are 0.35 per e-fold of price and 0.5 for thinking.
    """
    features = np.array(
        [[1.0, math.log(max(m.output_usd_per_million, 0.01)), float(m.thinking)] for m in models]
    )
    features[:, 1] -= features[:, 1].mean()
    known = np.array([bool(m.scores) for m in models])
    center = np.array([0.0, 0.35, 0.5])
    rows = features[known]
    normal = rows.T @ rows + np.eye(3)
    slopes = center + _solve(normal, rows.T @ (general[known] - rows @ center))
    return features @ slopes


# --- the world ---------------------------------------------------------------------------------

RHO_TASK = 0.35
RHO_MODEL = 0.35
DISTRACTORS = 8
ZIPF_EXPONENT = 0.8
_PROMPT_OVERHEAD_TOKENS = 12
_TOKENS_PER_SECOND = {"budget": 150.0, "standard": 110.0, "premium": 75.0, "specialized": 60.0}
_WEIGHTS = [1.0 / rank**ZIPF_EXPONENT for rank in range(1, DISTRACTORS + 1)]
_NORMAL = NormalDist().inv_cdf
_LEADS = (
    "Working through it step by step gives the result.",
    "I checked each part in turn.",
    "Here is what I found.",
    "Let me go through it carefully.",
)


@dataclass(frozen=True, slots=True)
class _TaskWorld:
    """What is fixed about a task before any model is asked.

    ``replies`` holds (text ending, final answer), the right one first, then the distractors.
    """

    z: float
    domain: str
    difficulty: float
    replies: tuple[tuple[str, str | None], ...]
    cumulative: tuple[float, ...]
    z_model: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Said:
    """The content of one reply, and what decides its length."""

    text: str
    answer: str | None
    domain: str
    difficulty: float


class SimulatedFleet:
    """Answers of simulated models (world ``simulated``).

    ``seed`` is the world's. ``failure_rate`` is the chance that a call fails with an error and
    costs nothing. Latency is drawn and reported, not waited for. Temperature and system prompt
    change nothing but the input tokens.
    """

    world: World = "simulated"

    def __init__(self, catalog: Catalog, *, seed: int = 0, failure_rate: float = 0.0) -> None:
        if not 0.0 <= failure_rate <= 1.0:
            raise ValueError(f"failure_rate={failure_rate}; must lie in [0, 1]")
        self.catalog = catalog
        self.seed = seed
        self.failure_rate = failure_rate
        self.skills = calibrate(catalog)
        self._tasks: dict[tuple[str, str, str], _TaskWorld] = {}
        self._chances: dict[tuple[str, str, float], float] = {}

    async def complete(self, request: FleetRequest) -> Completion:
        return self.sample(request)

    def sample(self, request: FleetRequest) -> Completion:
        """One call, synchronously; :meth:`complete` is the same."""
        task, spec = request.task, self.catalog[request.model]
        draws = _uniforms(self.seed, task.id, spec.id, request.attempt)
        if draws[0] < self.failure_rate:
            return Completion(
                spec.id, "", latency_s=1.0, finish_reason="error", error="simulated outage"
            )
        if task.verifier == "chat":
            return _bill(request, spec, draws, _Said(chat_reply(task), None, "chat", 0.0))
        if not task.gold:
            return _bill(request, spec, draws, _placeholder(task, spec))
        return _bill(request, spec, draws, self._say(task, spec, draws))

    def _say(self, task: Task, spec: ModelSpec, draws: Sequence[float]) -> _Said:
        """What a model says on a task that has a right answer."""
        world = self._task_world(task)
        index = 0
        if not self._is_right(world, task, spec, draws[1]):
            index = 1 + bisect(world.cumulative, draws[2] * world.cumulative[-1])
        ending, answer = world.replies[index]
        lead = _LEADS[int(draws[3] * len(_LEADS))]
        return _Said(f"{lead} {ending}", answer, world.domain, world.difficulty)

    def _is_right(self, world: _TaskWorld, task: Task, spec: ModelSpec, draw: float) -> bool:
        z_model = world.z_model.get(spec.id)
        if z_model is None:
            z_model = _NORMAL(_uniforms(self.seed, task.id, spec.id)[0])
            world.z_model[spec.id] = z_model
        latent = (
            math.sqrt(RHO_TASK) * world.z
            + math.sqrt(RHO_MODEL) * z_model
            + math.sqrt(1.0 - RHO_TASK - RHO_MODEL) * _NORMAL(draw)
        )
        return 0.5 * math.erfc(-latent / math.sqrt(2.0)) < self._chance(spec.id, world)

    def _chance(self, model: str, world: _TaskWorld) -> float:
        key = (model, world.domain, world.difficulty)
        if (chance := self._chances.get(key)) is None:
            chance = self._chances[key] = self.skills.probability(*key)
        return chance

    def _task_world(self, task: Task) -> _TaskWorld:
        key = (task.id, task.query, task.gold)
        if (world := self._tasks.get(key)) is None:
            world = self._tasks[key] = self._make_world(task)
        return world

    def _make_world(self, task: Task) -> _TaskWorld:
        domain = task.domain if task.domain in DOMAINS else guess_domain(task.query)
        replies = _replies(task, Random(f"{self.seed}/{task.id}"))
        return _TaskWorld(
            z=_NORMAL(_uniforms(self.seed, task.id)[0]),
            domain="stem" if domain == "chat" else domain,
            difficulty=0.5 if task.difficulty is None else min(1.0, max(0.0, task.difficulty)),
            replies=replies,
            cumulative=tuple(accumulate(_WEIGHTS[: len(replies) - 1])),
        )


def _placeholder(task: Task, spec: ModelSpec) -> _Said:
    """A reply to free text, which nobody here can answer: it says that it is simulated."""
    domain = guess_domain(task.query)
    body = f"No model was called; an answer about {domain} would stand here."
    if domain == "chat":
        body = chat_reply(task)
    return _Said(f"[simulated reply of {spec.name or spec.id}] {body}", None, domain, 0.5)


def _bill(
    request: FleetRequest, spec: ModelSpec, draws: Sequence[float], said: _Said
) -> Completion:
    """The completion with its tokens, cost and latency."""
    task = request.task
    chars = len(task.query) + len(task.system or "") + len(request.system_prompt or "")
    chars += sum(len(str(m.get("content") or "")) for m in task.history)
    input_tokens = _PROMPT_OVERHEAD_TOKENS + chars // 4
    spread = 0.35 if spec.thinking else 0.2
    noise = math.exp(spread * _NORMAL(draws[4]) - spread**2 / 2)
    drawn = round(expected_output_tokens(spec, said.domain, said.difficulty) * noise)
    output_tokens = min(spec.max_output_tokens, max(len(said.text) // 4, drawn, 1))
    speed = _TOKENS_PER_SECOND[spec.tier] * math.exp(0.25 * _NORMAL(draws[5]))
    return Completion(
        model=spec.id,
        text=said.text,
        answer=said.answer,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cost_usd=spec.cost(input_tokens, output_tokens),
        latency_s=0.4 + output_tokens / speed,
    )


def _replies(task: Task, rng: Random) -> tuple[tuple[str, str | None], ...]:
    """The right reply and up to :data:`DISTRACTORS` wrong ones, each checked by the verifier.

    Raises ValueError when the verifier refuses the gold answer, or nothing wrong can be found.
    """
    gold, right = task.gold, _ending(task.gold)
    if score(task, right) < 1.0:
        raise ValueError(f"task {task.id!r}: verifier {task.verifier!r} refuses {right!r}")
    replies = [(right, final_answer(right))]
    answers = {replies[0][1]}
    for tried, wrong in enumerate(plausible_errors(task, gold, rng)):
        if len(replies) > DISTRACTORS or tried > 40:
            break
        text = _ending(wrong)
        answer = final_answer(text)
        if answer is not None and answer not in answers and score(task, text) < 1.0:
            answers.add(answer)
            replies.append((text, answer))
    if len(replies) == 1:
        raise ValueError(f"task {task.id!r}: found no wrong answer for gold={gold!r}")
    return tuple(replies)


def _ending(answer: str) -> str:
    return f"Answer:\n{answer}" if "\n" in answer else f"Answer: {answer}"


def expected_output_tokens(spec: ModelSpec, domain: str, difficulty: float) -> float:
    """Mean output tokens of a call: typical at difficulty 0.5, growing with difficulty (faster
    for thinking models), a short reply for chat."""
    if domain == "chat":
        return 40.0 + (0.05 * spec.typical_output_tokens if spec.thinking else 0.0)
    low, slope = (0.4, 1.2) if spec.thinking else (0.7, 0.6)
    return spec.typical_output_tokens * (low + slope * difficulty)


_GUESSES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("table", re.compile(r"^\s*\|.*\|\s*$|^(?:[^,\n]+,){2,}[^,\n]+\n(?:[^,\n]+,){2,}", re.M)),
    (
        "code",
        re.compile(r"\bdef \w|\bclass \w|```|\b(?:python|function|code|compile|bug|regex)\b", re.I),
    ),
    ("math", re.compile(r"\d\s*[-+*/^×=]\s*\d|\b(?:solve|integral|equation|prime|sum of)\b", re.I)),
    ("logic", re.compile(r"\b(?:logically|puzzle|knight|liar|premise|sudoku)\b", re.I)),
    (
        "chat",
        re.compile(r"^\W*(?:hi|hello|hey|thanks|thank you|good (?:morning|evening)|bye)\b", re.I),
    ),
)


def guess_domain(query: str) -> str:
    """A light guess by key words, ``stem`` where none fits."""
    return next((domain for domain, mark in _GUESSES if mark.search(query)), "stem")


def _uniforms(*key: object) -> tuple[float, ...]:
    """Six uniform numbers in (0, 1) that depend on the key alone, on any machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=48).digest()
    return tuple(((x >> 11) + 0.5) * 2.0**-53 for x in struct.unpack("<6Q", digest))
