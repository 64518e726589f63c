"""Baselines that read the query: kNN, k-means, ridge, matrix factorisation, FrugalGPT cascade.

Each predicts, from TF-IDF features of the query, the quality and cost of every model, and calls
the pool member with the highest ``quality − λ·cost/reference``, λ being ``state.cost_weight``.
Call ``prepare(tasks)`` to predict for many queries at once; ``decide`` alone works too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xrouter.catalog import ModelSpec
from xrouter.episode import Completion, Decision, State, Task
from xrouter.policies.cascades import (
    call_and_select,
    call_models,
    called,
    find,
    select,
    undominated,
)

if TYPE_CHECKING:
    from xrouter.outcomes import OutcomeTable

Floats = npt.NDArray[np.float64]


class TextFeatures:
    """TF-IDF over words, word pairs and symbols; rows have unit length."""

    def __init__(self, texts: Sequence[str], max_features: int = 20_000) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            ngram_range=(1, 2),
            min_df=2 if len(texts) > 50 else 1,
            max_features=max_features,
            token_pattern=r"\w+|[^\w\s]",
        )
        self.matrix = self._vectorizer.fit_transform(texts)

    def __call__(self, texts: Sequence[str]) -> Any:
        """Sparse matrix [len(texts), features]."""
        return self._vectorizer.transform(texts)


class TextRouter:
    """One call to the model with the highest predicted utility; subclasses predict.

    Models that were not in the table are never chosen; if a call fails, the next best is tried.
    """

    name = "text"

    def __init__(self, table: OutcomeTable, reference_usd: float) -> None:
        if not reference_usd > 0:
            raise ValueError(f"{self.name}: reference_usd={reference_usd}; must be positive")
        self.models = table.models
        self.reference_usd = reference_usd
        self.features = TextFeatures([t.query for t in table.tasks])
        self._fit(self.features.matrix, table.quality, table.cost_usd)
        self._known: dict[str, tuple[Floats, Floats]] = {}
        self._pools: dict[tuple[str, ...], npt.NDArray[np.int64]] = {}

    def _fit(self, x: Any, quality: Floats, cost: Floats) -> None:
        raise NotImplementedError

    def _predict(self, x: Any) -> tuple[Floats, Floats]:
        """Quality and cost in USD, each [rows of x, models]."""
        raise NotImplementedError

    def prepare(self, tasks: Iterable[Task]) -> None:
        """Predict for all queries in one go."""
        texts = list(dict.fromkeys(t.query for t in tasks if t.query not in self._known))
        if texts:
            quality, cost = self._predict(self.features(texts))
            self._known.update(zip(texts, zip(quality, cost, strict=True), strict=True))

    def utility(self, task: Task, cost_weight: float) -> Floats:
        """Predicted ``quality − λ·cost/reference`` of every model of the table."""
        if task.query not in self._known:
            self.prepare([task])
        quality, cost = self._known[task.query]
        return quality - (cost_weight / self.reference_usd) * cost

    async def decide(self, state: State) -> Decision:
        utility = self.utility(state.task, state.cost_weight)
        columns = self._pool_columns(state.pool)
        if state.turns:
            tried = called(state)
            columns = np.array([j for j in columns if self.models[j] not in tried] or columns)
        best = self.models[columns[utility[columns].argmax()]]
        return call_and_select(state, find(state.pool, best))

    def _pool_columns(self, pool: tuple[ModelSpec, ...]) -> npt.NDArray[np.int64]:
        key = tuple(spec.id for spec in pool)
        if key not in self._pools:
            columns = [self.models.index(m) for m in key if m in self.models]
            if not columns:
                raise ValueError(
                    f"{self.name}: none of the pool ({', '.join(key)}) was in the outcomes it was "
                    f"fitted on ({', '.join(self.models)})"
                )
            self._pools[key] = np.array(columns, np.int64)
        return self._pools[key]


class KNNRouter(TextRouter):
    """Mean outcome of the ``neighbours`` most similar training queries, weighted by cosine
    similarity; a pseudo-neighbour of weight ``prior`` holds the overall mean."""

    name = "knn"

    def __init__(
        self,
        table: OutcomeTable,
        reference_usd: float,
        *,
        neighbours: int = 40,
        prior: float = 1.0,
    ) -> None:
        if neighbours < 1:
            raise ValueError(f"knn: neighbours={neighbours}; must be at least 1")
        self.neighbours, self.prior = neighbours, prior
        super().__init__(table, reference_usd)

    def _fit(self, x: Any, quality: Floats, cost: Floats) -> None:
        self._x, self._quality, self._cost = x, quality, cost

    def _predict(self, x: Any) -> tuple[Floats, Floats]:
        k = min(self.neighbours, len(self._quality))
        similarity = (x @ self._x.T).toarray()
        near = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = np.take_along_axis(similarity, near, axis=1)[:, :, None]
        total = weight.sum(axis=1) + self.prior

        def smooth(values: Floats) -> Floats:
            blended = (weight * values[near]).sum(axis=1) + self.prior * values.mean(axis=0)
            return np.asarray(blended / total)

        return smooth(self._quality), smooth(self._cost)


class KMeansRouter(TextRouter):
    """Avengers-style: cluster the training queries, keep each model's mean outcome per cluster
    (shrunk towards its overall mean by ``prior`` pseudo-queries), route by nearest cluster."""

    name = "kmeans"

    def __init__(
        self,
        table: OutcomeTable,
        reference_usd: float,
        *,
        clusters: int = 16,
        prior: float = 5.0,
        seed: int = 0,
    ) -> None:
        if clusters < 1:
            raise ValueError(f"kmeans: clusters={clusters}; must be at least 1")
        self.clusters, self.prior, self.seed = clusters, prior, seed
        super().__init__(table, reference_usd)

    def _fit(self, x: Any, quality: Floats, cost: Floats) -> None:
        from sklearn.cluster import KMeans

        k = min(self.clusters, max(1, len(quality) // 8))
        self._kmeans = KMeans(k, n_init=3, random_state=self.seed).fit(x)
        member = np.eye(k)[self._kmeans.labels_]
        size = member.sum(axis=0)[:, None] + self.prior
        self._quality = (member.T @ quality + self.prior * quality.mean(axis=0)) / size
        self._cost = (member.T @ cost + self.prior * cost.mean(axis=0)) / size

    def _predict(self, x: Any) -> tuple[Floats, Floats]:
        cluster = self._kmeans.predict(x)
        return self._quality[cluster], self._cost[cluster]


class RidgeRouter(TextRouter):
    """Ridge regression of every model's quality and cost on the features."""

    name = "ridge"

    def __init__(self, table: OutcomeTable, reference_usd: float, *, alpha: float = 3.0) -> None:
        self.alpha = alpha
        super().__init__(table, reference_usd)

    def _fit(self, x: Any, quality: Floats, cost: Floats) -> None:
        from sklearn.linear_model import Ridge

        self._quality = Ridge(self.alpha).fit(x, quality)
        self._cost = Ridge(self.alpha).fit(x, cost / self.reference_usd)
        self._bounds = cost.min(axis=0), cost.max(axis=0)

    def _predict(self, x: Any) -> tuple[Floats, Floats]:
        shape = (x.shape[0], -1)
        quality = np.clip(self._quality.predict(x).reshape(shape), 0.0, 1.0)
        cost = self._cost.predict(x).reshape(shape) * self.reference_usd
        return quality, np.clip(cost, *self._bounds)


class MatrixFactorizationRouter(TextRouter):
    """RouteLLM-style matrix factorisation, for correctness labels instead of preferences.

    P(model m is right on query q) = σ(v_mᵀ·W·φ(q) + b_m), with φ the TF-IDF features projected
    to ``components`` dimensions and v of ``rank`` dimensions; maximum likelihood by Adam with
    weight decay. Cost per model is its mean, scaled by the query's length by ridge regression.
    """

    name = "matrix_factorization"

    def __init__(
        self,
        table: OutcomeTable,
        reference_usd: float,
        *,
        components: int = 48,
        rank: int = 8,
        steps: int = 300,
        decay: float = 0.02,
        seed: int = 0,
    ) -> None:
        self.components, self.rank, self.steps = components, rank, steps
        self.decay, self.seed = decay, seed
        super().__init__(table, reference_usd)

    def _fit(self, x: Any, quality: Floats, cost: Floats) -> None:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.linear_model import Ridge

        size = max(1, min(self.components, min(x.shape) - 1))
        self._svd = TruncatedSVD(size, random_state=self.seed).fit(x)
        phi = self._svd.transform(x)
        self._scale = phi.std(axis=0) + 1e-9
        rng = np.random.default_rng(self.seed)
        rate = np.clip(quality.mean(axis=0), 0.01, 0.99)
        start = [
            rng.normal(0, 0.1, (self.rank, size)),
            rng.normal(0, 0.1, (quality.shape[1], self.rank)),
            np.log(rate / (1 - rate)),
        ]
        self._weights = _fit_factors(phi / self._scale, quality, start, self.steps, self.decay)
        self._cost = Ridge(1.0).fit(phi / self._scale, cost / self.reference_usd)
        self._bounds = cost.min(axis=0), cost.max(axis=0)

    def _predict(self, x: Any) -> tuple[Floats, Floats]:
        phi = self._svd.transform(x) / self._scale
        w, v, b = self._weights
        cost = self._cost.predict(phi).reshape(len(phi), -1) * self.reference_usd
        return _sigmoid(phi @ w.T @ v.T + b), np.clip(cost, *self._bounds)


def _fit_factors(
    phi: Floats, target: Floats, start: Sequence[Floats], steps: int, decay: float
) -> list[Floats]:
    """Adam on the mean logistic loss of σ(φ·Wᵀ·Vᵀ + b); biases are not decayed."""
    params = [p.copy() for p in start]
    first = [np.zeros_like(p) for p in params]
    second = [np.zeros_like(p) for p in params]
    rate, beta1, beta2 = 0.02, 0.9, 0.99
    for step in range(1, steps + 1):
        w, v, b = params
        hidden = phi @ w.T
        error = (_sigmoid(hidden @ v.T + b) - target) / len(phi)
        grads = [(error @ v).T @ phi + decay * w, error.T @ hidden + decay * v, error.sum(axis=0)]
        for i, grad in enumerate(grads):
            first[i] = beta1 * first[i] + (1 - beta1) * grad
            second[i] = beta2 * second[i] + (1 - beta2) * grad**2
            move = (first[i] / (1 - beta1**step)) / (np.sqrt(second[i] / (1 - beta2**step)) + 1e-8)
            params[i] = params[i] - rate * move
    return params


def _sigmoid(z: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)))


@dataclass(frozen=True)
class _Plan:
    """Call ``models`` in order; accept answer i when its score reaches ``thresholds[i]``."""

    models: tuple[int, ...]
    thresholds: tuple[float, ...]

    def describe(self, names: Sequence[str]) -> str:
        """``a@0.6213>b@0.8000>c``: accept a's answer from score 0.6213 on, and so forth."""
        steps = [f"{names[j]}@{t:.4f}" for j, t in zip(self.models, self.thresholds, strict=False)]
        return ">".join([*steps, names[self.models[-1]]])


class FrugalCascade:
    """FrugalGPT-style cascade: a learned score decides whether an answer is accepted.

    The score of a model's answer is a logistic regression on the query's features and on what
    the answer shows (missing, cost of the call, length, digits), fitted per model; thresholds
    and the chain of up to three of ``candidates`` models are searched on out-of-fold scores for
    each λ = ``state.cost_weight``.
    """

    name = "frugal"

    def __init__(
        self,
        table: OutcomeTable,
        reference_usd: float,
        *,
        candidates: int = 8,
        levels: int = 8,
        folds: int = 5,
        seed: int = 0,
    ) -> None:
        self.reference_usd = reference_usd
        keep = _candidates(table, reference_usd, candidates)
        self.models = tuple(table.models[j] for j in keep)
        part = table.select(self.models)
        self.features = TextFeatures([t.query for t in table.tasks], max_features=5_000)
        fold = np.random.default_rng(seed).permutation(len(table.tasks)) % folds
        fitted = [_fit_scorer(self.features.matrix, part, j, fold) for j in range(len(keep))]
        self._scorers = [scorer for scorer, _ in fitted]
        scores = np.stack([held_out for _, held_out in fitted], axis=1)
        self._plans, self._quality, self._cost = _search_plans(part, scores, levels)
        self._by_weight: dict[float, _Plan] = {}
        self._fixed: _Plan | None = None
        self._known: dict[str, Floats] = {}

    def prepare(self, tasks: Iterable[Task]) -> None:
        """Compute the query's part of all scores in one go."""
        texts = list(dict.fromkeys(t.query for t in tasks if t.query not in self._known))
        if texts:
            x = self.features(texts)
            logits = np.stack([scorer.query_logit(x) for scorer in self._scorers], axis=1)
            self._known.update(zip(texts, logits, strict=True))

    def plan(self, cost_weight: float) -> _Plan:
        """The best plan at λ on the training scores."""
        if cost_weight not in self._by_weight:
            utility = self._quality - cost_weight * self._cost / self.reference_usd
            self._by_weight[cost_weight] = self._plans[int(utility.argmax())]
        return self._by_weight[cost_weight]

    def frontier(self) -> list[FrugalCascade]:
        """The plans that no other beats on the training scores, cheapest first, as policies
        that ignore λ."""
        policies = []
        for i in undominated(self._cost, self._quality):
            policy = copy.copy(self)
            policy._fixed = self._plans[i]
            policy.name = f"frugal:{policy._fixed.describe(self.models)}"
            policies.append(policy)
        return policies

    async def decide(self, state: State) -> Decision:
        plan = self._fixed or self.plan(state.cost_weight)
        chain = [find(state.pool, self.models[j]) for j in plan.models]
        tried = called(state)
        if done := state.completions:
            step = [spec.id for spec in chain].index(done[-1].model)
            if self._accepted(state.task, done[-1], plan, step):
                return select(state, done[-1])
        left = [spec for spec in chain if spec.id not in tried]
        if not left:
            return select(state, done[-1]) if done else call_and_select(state, chain[-1])
        if len(left) == 1 or state.turns_left <= 1 or state.mode == "simple":
            return call_and_select(state, left[0])
        return call_models(left[:1])

    def _accepted(self, task: Task, done: Completion, plan: _Plan, step: int) -> bool:
        if step >= len(plan.thresholds):
            return True
        if task.query not in self._known:
            self.prepare([task])
        j = plan.models[step]
        shown = np.array(_answer_features(done.answer, done.cost_usd))
        logit = self._known[task.query][j] + self._scorers[j].answer_logit(shown)
        return bool(_sigmoid(np.asarray(logit)) >= plan.thresholds[step])


def _answer_features(answer: str | None, cost_usd: float) -> tuple[float, ...]:
    text = answer or ""
    digits = sum(ch.isdigit() for ch in text) / max(1, len(text))
    return (
        float(answer is None),
        math.log(cost_usd + 1e-7) + 9.0,
        math.log1p(len(text)),
        digits,
    )


def _fit_scorer(
    x: Any, table: OutcomeTable, j: int, fold: npt.NDArray[np.int64]
) -> tuple[_Scorer, Floats]:
    """The scorer of model j on all tasks, and out-of-fold scores [n]."""
    pairs = zip(table.answers[:, j], table.cost_usd[:, j], strict=True)
    shown = np.array([_answer_features(answer, cost) for answer, cost in pairs])
    label = table.quality[:, j] > 0.5
    held_out = np.empty(len(label))
    for k in np.unique(fold):
        inside, out = fold != k, fold == k
        scorer = _Scorer(x[inside], shown[inside], label[inside])
        held_out[out] = scorer(x[out], shown[out])
    return _Scorer(x, shown, label), held_out


class _Scorer:
    """Logistic regression on [query features, answer features]; its logit splits into both."""

    def __init__(self, x: Any, shown: Floats, label: npt.NDArray[np.bool_]) -> None:
        from scipy.sparse import csr_matrix, hstack
        from sklearn.linear_model import LogisticRegression

        self._mean, self._scale = shown.mean(axis=0), shown.std(axis=0) + 1e-6
        dense = (shown - self._mean) / self._scale
        self._query = np.zeros(x.shape[1])
        self._answer = np.zeros(shown.shape[1])
        rate = (label.sum() + 0.5) / (len(label) + 1.0)
        self._bias = math.log(rate / (1.0 - rate))
        if 0 < label.sum() < len(label):
            model = LogisticRegression(C=1.0, solver="liblinear")
            model.fit(csr_matrix(hstack([x, csr_matrix(dense)])), label)
            self._query = model.coef_[0, : x.shape[1]]
            self._answer = model.coef_[0, x.shape[1] :]
            self._bias = float(model.intercept_[0])

    def query_logit(self, x: Any) -> Floats:
        return np.asarray(x @ self._query + self._bias)

    def answer_logit(self, shown: Floats) -> Floats:
        return np.asarray(((shown - self._mean) / self._scale) @ self._answer)

    def __call__(self, x: Any, shown: Floats) -> Floats:
        """P(the answer is right), [rows]."""
        return _sigmoid(self.query_logit(x) + self.answer_logit(shown))


def _candidates(table: OutcomeTable, reference_usd: float, size: int) -> list[int]:
    """Models that rank first or second at some exchange rate, cheapest first, at most ``size``."""
    quality, cost = table.quality.mean(axis=0), table.cost_usd.mean(axis=0) / reference_usd
    votes = np.zeros(len(quality))
    for rate in [0.0, *np.geomspace(0.01, 30.0, 40)]:
        order = np.argsort(-(quality - rate * cost), kind="stable")
        votes[order[0]] += 1.0
        votes[order[1:2]] += 0.5
    kept = [j for j in np.argsort(-votes, kind="stable")[:size] if votes[j] > 0]
    return sorted(kept, key=lambda j: cost[j])


def _search_plans(
    table: OutcomeTable, scores: Floats, levels: int
) -> tuple[list[_Plan], Floats, Floats]:
    """All chains of one to three models with thresholds at ``levels`` quantiles of each score.

    Returns the plans with their mean quality and mean cost in USD on the table.
    """
    m = len(table.models)
    grid = np.quantile(scores, np.linspace(0.0, 1.0, levels + 1)[1:], axis=0)
    quality, cost = table.quality, table.cost_usd
    plans = [_Plan((j,), ()) for j in range(m)]
    means = [(quality[:, j].mean(), cost[:, j].mean()) for j in range(m)]
    accept = scores[:, :, None] >= grid.T[None, :, :]
    for j in range(m):
        # Value of starting at j with each threshold and ending at k: [levels, tasks].
        for k in (k for k in range(m) if k != j):
            yes = accept[:, j, :].T
            q2 = np.where(yes, quality[:, j], quality[:, k])
            c2 = cost[:, j] + np.where(yes, 0.0, cost[:, k])
            plans += [_Plan((j, k), (float(t),)) for t in grid[:, j]]
            means += list(zip(q2.mean(axis=1), c2.mean(axis=1), strict=True))
            for i in (i for i in range(m) if i not in (j, k)):
                refuse = 1.0 - accept[:, i, :].T
                q3 = (quality[:, i].sum() - refuse @ quality[:, i])[:, None] + refuse @ q2.T
                c3 = cost[:, i].sum() + refuse @ c2.T
                plans += [
                    _Plan((i, j, k), (float(s), float(t))) for s in grid[:, i] for t in grid[:, j]
                ]
                n = len(quality)
                means += list(zip((q3 / n).ravel(), (c3 / n).ravel(), strict=True))
    found = np.array(means)
    return plans, found[:, 0], found[:, 1]
