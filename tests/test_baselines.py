import asyncio
from itertools import permutations

import numpy as np
import pytest
from support_recordings import MODELS, frames, recording, write

from xrouter.catalog import Catalog, ModelSpec
from xrouter.episode import Completion, Episode, State, Task
from xrouter.evaluation.runner import default_orchestrator, evaluate
from xrouter.fleets.recorded import RecordedFleet
from xrouter.orchestrator import Limits, Orchestrator
from xrouter.outcomes import OutcomeTable, recorded_table
from xrouter.policies.baselines import FITTED, PLAIN, best_fixed_chain, make_policy
from xrouter.policies.cascades import (
    AgreementCascade,
    FixedChain,
    chain_outcomes,
    search_chains,
    undominated,
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> RecordedFleet:
    return RecordedFleet(recording(tmp_path_factory.mktemp("recording") / "r", n=60))


@pytest.fixture(scope="module")
def table(fleet) -> OutcomeTable:
    return recorded_table(fleet, fleet.tasks())


def run(fleet, policy, tasks=None, cost_weight=0.1, **options) -> list[Episode]:
    return evaluate(policy, fleet, tasks or fleet.tasks(), cost_weight=cost_weight, **options)


def models_called(episode: Episode) -> list[str]:
    return [c.model for c in episode.calls]


def routes(fleet, policy, **options) -> list[list[str]]:
    return [models_called(e) for e in run(fleet, policy, **options)]


# --- every baseline ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PLAIN, *FITTED, "oracle", "model:medium"])
def test_every_baseline_answers_every_task_without_router_cost(fleet, table, name):
    episodes = run(fleet, make_policy(name, table), cost_weight=0.1)
    assert {e.stop_reason for e in episodes} <= {"selected", "turns_exhausted"}
    assert all(e.router_cost_usd == 0 and e.calls and not e.errors for e in episodes)


@pytest.mark.parametrize("name", [*PLAIN, *FITTED])
def test_every_baseline_repeats_itself(fleet, table, name):
    tasks = fleet.tasks()[::5]
    first, second = (run(fleet, make_policy(name, table), tasks, cost_weight=0.1) for _ in range(2))
    assert [models_called(e) for e in first] == [models_called(e) for e in second]


@pytest.mark.parametrize("name", [*PLAIN, *FITTED])
def test_simple_mode_makes_exactly_one_call(fleet, table, name):
    orchestrator = Orchestrator(fleet, mode="simple")
    policy = make_policy(name, table)
    episodes = evaluate(policy, orchestrator, fleet.tasks()[:20], cost_weight=0.1)
    assert all(len(e.calls) == 1 and e.stop_reason == "simple" and not e.errors for e in episodes)


@pytest.mark.parametrize("name", [n for n in FITTED if n != "best_single"])
def test_a_higher_cost_weight_never_costs_more_on_the_training_tasks(fleet, table, name):
    policy = make_policy(name, table)
    costs = [
        np.mean([e.cost_usd for e in run(fleet, policy, cost_weight=weight)])
        for weight in (0.0, 0.3, 3.0)
    ]
    assert costs[0] >= costs[1] >= costs[2]
    assert costs[0] > costs[2]


class Flaky:
    """A fleet in which one model always fails."""

    world = "recorded"

    def __init__(self, fleet: RecordedFleet, down: str) -> None:
        self.catalog, self._fleet, self._down = fleet.catalog, fleet, down

    async def complete(self, request):
        if request.model == self._down:
            raise ConnectionError("down")
        return await self._fleet.complete(request)


@pytest.mark.parametrize("name", ["cheapest", "dataset_best", "knn", "ridge", "oracle"])
def test_when_the_chosen_model_is_down_another_one_answers(fleet, table, name):
    policy = make_policy(name, table)
    down = models_called(run(fleet, policy, fleet.tasks()[:1], cost_weight=0.1)[0])[0]
    [episode] = evaluate(policy, Flaky(fleet, down), fleet.tasks()[:1], cost_weight=0.1)
    assert episode.answer_model not in (None, down)


# --- simple ones -------------------------------------------------------------------------------


def test_a_single_model_is_one_turn_and_returns_that_model(fleet, table):
    episodes = run(fleet, make_policy("model:medium"))
    assert all(len(e.turns) == 1 and e.answer_model == "medium" for e in episodes)
    assert np.mean([e.quality for e in episodes]) == table.quality[:, 2].mean()


def test_cheapest_and_most_expensive_follow_the_prices(fleet):
    assert set(map(tuple, routes(fleet, make_policy("cheapest")))) == {("tiny",)}
    assert set(map(tuple, routes(fleet, make_policy("most_expensive")))) == {("large",)}


def test_random_depends_on_the_seed_and_covers_the_pool(fleet):
    first = routes(fleet, make_policy("random"))
    assert {m for route in first for m in route} == set(MODELS)
    assert first != routes(fleet, make_policy("random", seed=1))
    assert first != routes(fleet, make_policy("random"), seed=1)


def test_the_oracle_is_right_whenever_some_model_is_and_pays_least(fleet, table):
    episodes = run(fleet, make_policy("oracle", table))
    assert [e.quality for e in episodes] == table.quality.max(axis=1).tolist()
    for episode, quality, cost in zip(episodes, table.quality, table.cost_usd, strict=True):
        assert episode.cost_usd == cost[quality == quality.max()].min()


def test_dataset_best_learns_the_specialist_of_each_source(fleet, table):
    by_source: dict[str, set[str]] = {}
    found = routes(fleet, make_policy("dataset_best", table), cost_weight=0.0)
    for task, route in zip(fleet.tasks(), found, strict=True):
        by_source.setdefault(task.source, set()).update(route)
    for source, models in by_source.items():
        rows = [i for i, t in enumerate(table.tasks) if t.source == source]
        assert models == {table.models[table.quality[rows].mean(axis=0).argmax()]}


# --- cascades ----------------------------------------------------------------------------------


def state(*answers: tuple[str, str | None]) -> State:
    from xrouter.episode import Decision, ToolCall, ToolResult, Turn

    pool = Catalog(ModelSpec(m, p, p, (t,)) for (m, p), t in zip(
        MODELS.items(), ("budget", "budget", "standard", "premium"), strict=True))  # fmt: skip
    results = tuple(
        ToolResult(ToolCall(f"call_{m}"), Completion(m, a or "", a)) for m, a in answers
    )
    turns = (Turn(0, Decision(), results),) if answers else ()
    return State(Task("t", "?"), tuple(pool), turns=turns)


def decide(policy, *answers) -> list[str]:
    decision = asyncio.run(policy.decide(state(*answers)))
    return [c.arguments.get("model_call_name", c.name) for c in decision.tool_calls]


def test_agreement_starts_in_parallel_stops_on_agreement_and_escalates_otherwise():
    policy = AgreementCascade(["tiny", "small", "large"])
    assert decide(policy) == ["call_tiny", "call_small"]
    assert decide(policy, ("tiny", "4"), ("small", "4")) == ["call_small"]
    assert decide(policy, ("tiny", "4"), ("small", "5")) == ["call_large"]
    assert decide(policy, ("tiny", "4"), ("small", "5"), ("large", "4")) == ["call_large"]
    assert decide(policy, ("tiny", "4"), ("small", "5"), ("large", "6")) == ["call_large"]
    assert decide(policy, ("tiny", "4"), ("small", "5"), ("large", None)) == ["call_small"]


def test_missing_answers_do_not_agree():
    assert decide(
        AgreementCascade(["tiny", "small", "large"]), ("tiny", None), ("small", None)
    ) == ["call_large"]


def test_price_cascade_climbs_only_while_there_is_no_answer():
    policy = make_policy("price_cascade")
    assert decide(policy) == ["call_tiny"]
    assert decide(policy, ("tiny", "4")) == ["call_tiny"]
    assert decide(policy, ("tiny", None)) == ["call_medium"]
    assert decide(policy, ("tiny", None), ("medium", None)) == ["call_large", "call_large"]
    assert decide(make_policy("price_cascade", steps=1)) == ["call_tiny", "call_tiny"]


@pytest.mark.parametrize("chain", [*permutations(MODELS, 3), tuple(MODELS), ("large",)])
def test_array_and_replay_of_a_chain_agree(fleet, table, chain):
    quality, cost = chain_outcomes(table, chain)
    episodes = run(fleet, AgreementCascade(chain))
    assert [e.quality for e in episodes] == quality.tolist()
    assert [e.cost_usd for e in episodes] == pytest.approx(cost.tolist())


def test_array_and_replay_agree_where_answers_are_missing(tmp_path):
    queries, outcomes, prices = frames(n=60, seed=3)
    gone = np.random.default_rng(0).random(len(outcomes)) < 0.3
    outcomes.loc[gone, ["answer", "correct"]] = [None, 0]
    fleet = RecordedFleet(write(tmp_path / "r", queries, outcomes, prices))
    table = recorded_table(fleet, fleet.tasks())
    for chain in permutations(MODELS, 4):
        quality, cost = chain_outcomes(table, chain)
        episodes = run(fleet, AgreementCascade(chain))
        assert [e.quality for e in episodes] == quality.tolist()
        assert [e.cost_usd for e in episodes] == pytest.approx(cost.tolist())


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_the_search_scores_every_chain_exactly(tmp_path, missing):
    queries, outcomes, prices = frames(n=40, seed=5)
    gone = np.random.default_rng(1).random(len(outcomes)) < missing
    outcomes.loc[gone, ["answer", "correct"]] = [None, 0]
    fleet = RecordedFleet(write(tmp_path / "r", queries, outcomes, prices))
    table = recorded_table(fleet, fleet.tasks())
    found = search_chains(table)
    assert len(set(found.chains)) == len(found.chains) == 4 + 6 + 12 + 12
    for chain, quality, cost in zip(found.chains, found.quality, found.cost_usd, strict=True):
        expected = chain_outcomes(table, chain)
        assert quality == pytest.approx(expected[0].mean())
        assert cost == pytest.approx(expected[1].mean())


def test_the_best_fixed_chain_maximises_utility(table):
    unit = table.reference_usd()
    for weight in (0.0, 0.1, 1.0):
        best = best_fixed_chain(table, weight)
        quality, cost = chain_outcomes(table, best)
        utility = quality.mean() - weight * cost.mean() / unit
        for chain in search_chains(table).chains:
            q, c = chain_outcomes(table, chain)
            assert utility >= q.mean() - weight * c.mean() / unit - 1e-12


def test_the_frontier_of_chains_is_ascending_on_both_axes(table):
    chains = [policy.chain for policy in FixedChain(table, table.reference_usd()).frontier()]
    points = [chain_outcomes(table, c) for c in chains]
    quality, cost = [q.mean() for q, _ in points], [c.mean() for _, c in points]
    assert quality == sorted(quality)
    assert cost == sorted(cost)


def test_undominated_points_are_exactly_those_no_other_beats():
    rng = np.random.default_rng(0)
    cost, quality = rng.integers(0, 6, (2, 30)).astype(float)
    kept = undominated(cost, quality)
    for i in range(30):
        beaten = ((cost <= cost[i]) & (quality >= quality[i]) & (
            (cost < cost[i]) | (quality > quality[i]))).any()  # fmt: skip
        if beaten:
            assert i not in kept
        else:
            assert any(cost[k] == cost[i] and quality[k] == quality[i] for k in kept)


def test_frugal_spends_between_its_cheapest_and_dearest_model(fleet, table):
    policy = make_policy("frugal", table)
    episodes = run(fleet, policy, cost_weight=0.05)
    assert {len(e.calls) for e in episodes} <= {1, 2, 3}
    frontier = policy.frontier()
    assert len({p.name for p in frontier}) == len(frontier) > 1
    cost = [np.mean([e.cost_usd for e in run(fleet, p)]) for p in (frontier[0], frontier[-1])]
    assert cost[0] < cost[1]


# --- routers that read the query ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["knn", "kmeans", "ridge", "matrix_factorization"])
def test_text_routers_send_each_kind_of_query_to_its_specialist(fleet, table, name):
    policy = make_policy(name, table)
    chosen = {"recorded:gsm": [], "recorded:crux": []}
    for task, route in zip(fleet.tasks(), routes(fleet, policy, cost_weight=0.002), strict=True):
        chosen[task.source] += route
    assert chosen["recorded:crux"].count("medium") / 60 > 0.7
    assert chosen["recorded:gsm"].count("medium") / 60 < 0.5


class Unprepared:
    """Hides ``prepare``, so that each query is looked at when it comes."""

    def __init__(self, policy) -> None:
        self.name, self.decide = policy.name, policy.decide


@pytest.mark.parametrize("name", ["knn", "kmeans", "ridge", "matrix_factorization", "frugal"])
def test_preparing_changes_nothing_but_speed(fleet, table, name):
    tasks = fleet.tasks()[:10]
    policy, unprepared = make_policy(name, table), Unprepared(make_policy(name, table))
    assert routes(fleet, policy, tasks=tasks) == routes(fleet, unprepared, tasks=tasks)


@pytest.mark.parametrize("name", ["knn", "ridge", "dataset_best"])
def test_models_outside_the_pool_or_the_table_are_never_called(fleet, table, name):
    policy = make_policy(name, table.select(["tiny", "small", "large"]))
    for pool in (["tiny", "medium"], ["large", "medium", "small"]):
        called = {m for r in routes(fleet, policy, pool=pool, cost_weight=0.01) for m in r}
        assert called <= set(pool) - {"medium"}


def test_a_pool_of_strangers_is_a_clear_error(fleet, table):
    policy = make_policy("knn", table.select(["tiny", "small"]))
    with pytest.raises(ValueError, match=r"none of the pool \(large\) was in the outcomes"):
        run(fleet, policy, pool=["large"])


# --- making ------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_ones(table):
    with pytest.raises(ValueError, match=r"'nope' is neither a baseline \(random, .*frugal"):
        make_policy("nope", table)


def test_a_fitted_baseline_without_outcomes_is_refused():
    with pytest.raises(ValueError, match="needs an outcome table"):
        make_policy("knn")


def test_hyphens_are_as_good_as_underscores(table):
    assert make_policy("fixed-chain", table).name == "fixed_chain"


def test_baselines_work_within_a_single_turn(fleet, table):
    orchestrator = Orchestrator(fleet, limits=Limits(max_turns=1))
    for name in (*PLAIN, *FITTED):
        episodes = evaluate(make_policy(name, table), orchestrator, fleet.tasks()[:10])
        assert all(e.answer_source in ("select", "fallback") for e in episodes)


def test_the_default_orchestrator_keeps_three_turns(fleet):
    assert default_orchestrator(fleet).limits.max_turns == 3
