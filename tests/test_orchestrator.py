import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from xrouter.catalog import Catalog, ModelSpec
from xrouter.episode import Completion, Decision, Episode, State, Task, ToolCall
from xrouter.metering import report_lost
from xrouter.orchestrator import FleetRequest, Limits, Orchestrator
from xrouter.prompts import router_messages
from xrouter.tools import parse_tool_calls

CATALOG = Catalog(
    [
        ModelSpec("cheap", 1.0, 1.0, ("budget",), typical_output_tokens=1000),
        ModelSpec("rival", 1.0, 1.0, ("standard",), typical_output_tokens=1000),
        ModelSpec("dear", 10.0, 10.0, ("premium",), typical_output_tokens=1000),
    ]
)
TASK = Task("t1", "What is 6 x 7?", gold="GOLD-42", verifier="SECRET-VERIFIER")
ANSWERS = {"cheap": "42", "rival": "42", "dear": "41"}
COSTS = {"cheap": 0.001, "rival": 0.002, "dear": 0.01}


def call(model: str, **kw) -> ToolCall:
    return ToolCall(f"call_{model}", **kw)


def select(name: str) -> ToolCall:
    return ToolCall("select_response", {"model_call_name": name})


def calls(*models: str, **kw) -> Decision:
    return Decision(tool_calls=tuple(call(m) for m in models), **kw)


class Script:
    """A policy that says what is written, turn by turn, and keeps what it was shown."""

    name = "script"

    def __init__(self, *decisions: Decision | Exception) -> None:
        self.decisions = decisions
        self.states: list[State] = []

    async def decide(self, state: State) -> Decision:
        self.states.append(state)
        decision = self.decisions[len(state.turns)]
        if isinstance(decision, Exception):
            raise decision
        return decision


async def answer(request: FleetRequest) -> Completion:
    model = request.model
    return Completion(
        model, f"{model} says {ANSWERS[model]}", ANSWERS[model], cost_usd=COSTS[model]
    )


@dataclass
class ScriptedFleet:
    world: str = "simulated"
    catalog: Catalog = CATALOG
    behaviour: dict[str, Callable[[FleetRequest], Awaitable[Completion]]] = field(
        default_factory=dict
    )
    requests: list[FleetRequest] = field(default_factory=list)

    async def complete(self, request: FleetRequest) -> Completion:
        self.requests.append(request)
        return await self.behaviour.get(request.model, answer)(request)


def run(
    *decisions: Decision | Exception,
    mode: str = "agent",
    limits: Limits | None = None,
    fleet: ScriptedFleet | None = None,
    on_cost: Callable[[str, float], None] | None = None,
    task: Task = TASK,
    **kw,
) -> Episode:
    orchestrator = Orchestrator(fleet or ScriptedFleet(), mode=mode, limits=limits, on_cost=on_cost)
    return asyncio.run(orchestrator.run(task, Script(*decisions), **kw))


def errors(episode: Episode) -> str:
    return " | ".join(episode.errors)


def ending(episode: Episode) -> tuple:
    return (episode.stop_reason, episode.answer_source, episode.answer_model, episode.answer)


async def hang(request: FleetRequest) -> Completion:
    await asyncio.sleep(30)
    raise AssertionError("a hanging model was waited for")


async def explode(request: FleetRequest) -> Completion:
    raise RuntimeError("boom")


async def refuse(request: FleetRequest) -> Completion:
    return Completion(request.model, "", error="rate limit")


# How an episode ends


def test_content_without_calls_is_a_direct_answer():
    assert ending(run(Decision("42"))) == ("answered", "direct", None, "42")


def test_content_after_answers_is_a_synthesis():
    episode = run(calls("cheap", "dear"), Decision("It is 42."))
    assert ending(episode) == ("answered", "synthesis", None, "It is 42.")
    assert [c.model for c in episode.calls] == ["cheap", "dear"]


def test_content_after_failures_only_is_still_a_direct_answer():
    episode = run(calls("cheap"), Decision("42"), fleet=ScriptedFleet(behaviour={"cheap": refuse}))
    assert ending(episode) == ("answered", "direct", None, "42")


def test_selection_returns_the_chosen_answer_word_for_word():
    episode = run(calls("cheap", "dear"), Decision("noise", (select("call_dear"),)))
    assert ending(episode) == ("selected", "select", "dear", "dear says 41")


def test_a_call_and_its_selection_may_stand_in_one_turn_in_any_order():
    episode = run(Decision(tool_calls=(select("call_cheap"), call("cheap"), call("dear"))))
    assert ending(episode) == ("selected", "select", "cheap", "cheap says 42")
    assert [r.call.name for r in episode.turns[0].results] == [
        "select_response",
        "call_cheap",
        "call_dear",
    ]


def test_selection_takes_the_latest_answer_of_a_model_called_twice():
    async def numbered(request: FleetRequest) -> Completion:
        return Completion(request.model, f"try {request.attempt}", "x")

    fleet = ScriptedFleet(behaviour={"cheap": numbered})
    episode = run(calls("cheap"), calls("cheap"), Decision("", (select("cheap"),)), fleet=fleet)
    assert episode.answer == "try 1"


def test_turns_exhausted_falls_back_to_the_answer_most_models_agree_on():
    episode = run(calls("cheap", "rival"), calls("dear"), calls("dear"))
    assert ending(episode) == ("turns_exhausted", "fallback", "rival", "rival says 42")
    assert len(episode.turns) == 3


def test_without_agreement_the_latest_answer_is_the_fallback():
    episode = run(calls("dear"), calls("cheap"), limits=Limits(max_turns=2))
    assert ending(episode) == ("turns_exhausted", "fallback", "cheap", "cheap says 42")


def test_an_empty_decision_ends_the_episode_with_the_best_answer_so_far():
    assert ending(run(Decision())) == ("empty", "none", None, "")
    assert ending(run(calls("cheap"), Decision()))[:3] == ("empty", "fallback", "cheap")


def test_simple_mode_returns_the_one_answer_as_it_is():
    episode = run(Decision("I pick", (call("dear"), call("cheap"))), mode="simple")
    assert ending(episode) == ("simple", "simple", "dear", "dear says 41")
    assert [c.model for c in episode.calls] == ["dear"]
    assert "at most 1 call(s) per turn" in errors(episode)


def test_simple_mode_has_one_turn_and_no_selection():
    episode = run(Decision("", (select("cheap"),)), mode="simple")
    assert ending(episode) == ("simple", "none", None, "")
    assert "select_response" in errors(episode)
    assert len(episode.turns) == 1


def test_a_policy_that_raises_ends_the_episode_with_a_note():
    episode = run(calls("cheap"), RuntimeError("no GPU"))
    assert ending(episode)[:3] == ("policy_error", "fallback", "cheap")
    assert episode.note == "RuntimeError: no GPU"


def test_a_policys_own_timeout_is_a_policy_error_not_our_deadline():
    assert run(TimeoutError("router host")).stop_reason == "policy_error"


# What the policy is shown


def test_malformed_calls_become_errors_that_the_policy_sees_in_the_next_turn():
    content, parsed, problems = parse_tool_calls("<tool_call>{broken</tool_call>")
    policy = Script(Decision(content, parsed, problems), Decision("42"))
    episode = asyncio.run(Orchestrator(ScriptedFleet()).run(TASK, policy))
    assert ending(episode) == ("answered", "direct", None, "42")
    shown = router_messages(policy.states[1])[-1]["content"]
    assert shown.startswith("TOOL ERROR: malformed tool call '{broken'")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            call("nobody"),
            "unknown tool 'call_nobody'; available: call_cheap, call_rival, call_dear",
        ),
        (select("call_dear"), "'call_dear' has not answered; call a model first"),
        (select("nobody"), "'nobody' has not answered"),
        (call("cheap", arguments={"temperature": 9}), "temperature='9' must be a number"),
    ],
)
def test_a_call_that_cannot_be_carried_out_is_an_error_in_its_place(bad, message):
    policy = Script(Decision(tool_calls=(bad,)), Decision("42"))
    episode = asyncio.run(Orchestrator(ScriptedFleet()).run(TASK, policy))
    assert ending(episode) == ("answered", "direct", None, "42")
    assert message in errors(episode)
    assert message in router_messages(policy.states[1])[-1]["content"]
    assert episode.calls == ()


def test_a_model_that_failed_cannot_be_selected():
    fleet = ScriptedFleet(behaviour={"cheap": refuse})
    episode = run(calls("cheap"), Decision("", (select("cheap"),)), Decision("7"), fleet=fleet)
    assert ending(episode) == ("answered", "direct", None, "7")


def test_a_model_outside_the_pool_is_unknown():
    episode = run(calls("dear"), Decision("42"), pool=["cheap"])
    assert "unknown tool 'call_dear'; available: call_cheap, select_response" in errors(episode)
    assert episode.pool == ("cheap",)


def test_the_pool_of_the_task_is_used_and_repeats_are_dropped():
    task = Task("t", "q", pool=("dear", "cheap", "dear"))
    assert run(Decision("x"), task=task).pool == ("dear", "cheap")


@pytest.mark.parametrize("pool", [[], ["nobody"]])
def test_an_impossible_pool_is_refused_before_anything_is_spent(pool):
    policy = Script(Decision("x"))
    with pytest.raises(ValueError, match="pool"):
        asyncio.run(Orchestrator(ScriptedFleet()).run(TASK, policy, pool=pool))
    assert policy.states == []


def test_neither_gold_nor_verifier_nor_difficulty_reaches_a_policy():
    task = Task(
        "t",
        "q",
        gold="GOLD-42",
        verifier="SECRET-VERIFIER",
        difficulty=0.987,
        band="SECRET-BAND",
        metadata={"a": "SECRET-META"},
    )
    policy = Script(calls("cheap"), Decision("42"))
    fleet = ScriptedFleet()
    asyncio.run(Orchestrator(fleet).run(task, policy))
    for state in policy.states:
        shown = repr(state) + repr(router_messages(state))
        assert not any(secret in shown for secret in ("GOLD", "SECRET", "0.987"))
    assert fleet.requests[0].task.gold == "GOLD-42"


def test_called_models_get_prompt_temperature_seed_and_the_attempt_number():
    arguments = {"optimized_system_prompt": "Be exact.", "temperature": 0.3}
    twice = Decision(tool_calls=(call("cheap", arguments=arguments), call("cheap")))
    fleet = ScriptedFleet()
    run(twice, calls("cheap"), Decision("x"), fleet=fleet, seed=7)
    assert [(r.attempt, r.seed) for r in fleet.requests] == [(0, 7), (1, 7), (2, 7)]
    assert (fleet.requests[0].system_prompt, fleet.requests[0].temperature) == ("Be exact.", 0.3)
    assert fleet.requests[0].messages[0] == {"role": "system", "content": "Be exact."}


def test_tool_call_ids_are_unique_within_the_episode():
    first = Decision(tool_calls=(call("cheap", id="a"), call("dear", id="a"), call("rival")))
    second = Decision(tool_calls=(call("cheap", id="a"), call("dear", id="call_0_1")))
    third = Decision(tool_calls=(call("cheap", id="call_2_1"), call("dear", id="call_2_1")))
    episode = run(first, second, third)
    ids = [r.call.id for t in episode.turns for r in t.results]
    assert len(set(ids)) == len(ids) == 7
    assert all(ids)
    assert ids[0] == "a"


def test_calls_beyond_the_limit_of_a_turn_are_refused_in_their_place():
    episode = run(
        calls("cheap", "rival", "dear"), Decision("x"), limits=Limits(max_calls_per_turn=2)
    )
    assert [c.model for c in episode.calls] == ["cheap", "rival"]
    assert "at most 2 call(s) per turn" in episode.turns[0].results[2].error


# Failing and slow models, deadlines, cancellation


@pytest.mark.parametrize(
    ("behaviour", "message"), [(explode, "RuntimeError: boom"), (refuse, "rate limit")]
)
def test_a_failing_model_is_an_error_result_beside_the_good_ones(behaviour, message):
    fleet = ScriptedFleet(behaviour={"dear": behaviour})
    episode = run(calls("dear", "cheap"), Decision("", (select("cheap"),)), fleet=fleet)
    assert ending(episode) == ("selected", "select", "cheap", "cheap says 42")
    assert errors(episode) == message


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_timeout_inside_a_fleet_is_reported_as_the_fleets(timeout):
    async def gateway_timeout(request: FleetRequest) -> Completion:
        raise TimeoutError("gateway")

    limits = Limits(call_timeout_s=timeout, episode_timeout_s=None)
    fleet = ScriptedFleet(behaviour={"cheap": gateway_timeout})
    episode = run(calls("cheap"), Decision("x"), fleet=fleet, limits=limits)
    assert errors(episode) == "TimeoutError: gateway"


def test_a_hanging_model_is_cut_at_the_call_timeout_and_the_episode_goes_on():
    fleet = ScriptedFleet(behaviour={"dear": hang})
    started = time.monotonic()
    episode = run(
        calls("dear", "cheap"),
        Decision("", (select("cheap"),)),
        fleet=fleet,
        limits=Limits(call_timeout_s=0.05),
    )
    assert time.monotonic() - started < 5
    assert ending(episode)[:3] == ("selected", "select", "cheap")
    assert errors(episode) == "no answer within 0.05 s"


def test_the_deadline_of_the_episode_cuts_calls_and_falls_back():
    fleet = ScriptedFleet(behaviour={"dear": hang})
    limits = Limits(call_timeout_s=None, episode_timeout_s=0.2)
    episode = run(calls("cheap", "dear"), Decision("never"), fleet=fleet, limits=limits)
    assert ending(episode)[:3] == ("deadline", "fallback", "cheap")
    assert episode.wall_s < 5


def test_a_hanging_policy_is_cut_at_the_deadline():
    class Hanging(Script):
        async def decide(self, state: State) -> Decision:
            if not state.turns:
                return await super().decide(state)
            await asyncio.sleep(30)
            raise AssertionError("a hanging policy was waited for")

    orchestrator = Orchestrator(ScriptedFleet(), limits=Limits(episode_timeout_s=0.2))
    episode = asyncio.run(orchestrator.run(TASK, Hanging(calls("cheap"))))
    assert ending(episode)[:3] == ("deadline", "fallback", "cheap")


def test_calls_of_one_turn_are_in_flight_together():
    def meeting(size: int) -> Callable[[FleetRequest], Awaitable[Completion]]:
        waiting: list[str] = []
        everyone = asyncio.Event()

        async def meet(request: FleetRequest) -> Completion:
            waiting.append(request.model)
            if len(waiting) == size:
                everyone.set()
            await everyone.wait()
            return await answer(request)

        return meet

    async def main() -> Episode:
        meet = meeting(3)
        fleet = ScriptedFleet(behaviour=dict.fromkeys(ANSWERS, meet))
        policy = Script(calls("cheap", "rival", "dear"), Decision("42"))
        return await Orchestrator(fleet, limits=Limits(call_timeout_s=5)).run(TASK, policy)

    episode = asyncio.run(main())
    assert episode.errors == ()
    assert len(episode.calls) == 3


def test_results_keep_the_order_of_the_calls_whoever_answers_first():
    async def late(request: FleetRequest) -> Completion:
        await asyncio.sleep(0.03)
        return await answer(request)

    fleet = ScriptedFleet(behaviour={"dear": late})
    episode = run(calls("dear", "cheap"), Decision("x"), fleet=fleet)
    assert [c.model for c in episode.calls] == ["dear", "cheap"]


def test_cancellation_propagates_and_cancels_the_calls_in_flight():
    async def main() -> None:
        cancelled: list[str] = []
        started = asyncio.Event()

        async def until_cancelled(request: FleetRequest) -> Completion:
            started.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.append(request.model)
                raise
            raise AssertionError

        fleet = ScriptedFleet(behaviour=dict.fromkeys(("cheap", "dear"), until_cancelled))
        job = asyncio.ensure_future(Orchestrator(fleet).run(TASK, Script(calls("cheap", "dear"))))
        await started.wait()
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert sorted(cancelled) == ["cheap", "dear"]

    asyncio.run(main())


# Money


def test_costs_of_router_and_models_add_up_over_all_turns():
    episode = run(
        calls("cheap", "dear", cost_usd=0.0001),
        calls("rival", cost_usd=0.0002),
        Decision("42", cost_usd=0.0004),
    )
    assert episode.router_cost_usd == pytest.approx(0.0007)
    assert episode.models_cost_usd == pytest.approx(0.001 + 0.01 + 0.002)
    assert episode.cost_usd == pytest.approx(0.0137)
    assert [t.cost_usd for t in episode.turns] == pytest.approx([0.0111, 0.0022, 0.0004])


def test_on_cost_hears_of_every_cost_of_the_episode_once():
    bill: list[tuple[str, float]] = []
    episode = run(
        calls("cheap", "dear", cost_usd=0.0001),
        Decision("42", cost_usd=0.0004),
        on_cost=lambda who, usd: bill.append((who, usd)),
    )
    assert sorted(bill) == [
        ("cheap", 0.001),
        ("dear", 0.01),
        ("router", 0.0001),
        ("router", 0.0004),
    ]
    assert sum(usd for _, usd in bill) == pytest.approx(episode.cost_usd)


def test_a_client_that_hangs_up_is_billed_for_what_was_spent_until_then():
    bill: list[tuple[str, float]] = []

    async def main() -> None:
        async def partly(request: FleetRequest) -> Completion:
            try:
                await asyncio.sleep(30)
            finally:
                report_lost(0.005)
            raise AssertionError

        fleet = ScriptedFleet(behaviour={"dear": partly})
        orchestrator = Orchestrator(fleet, on_cost=lambda who, usd: bill.append((who, usd)))
        policy = Script(calls("cheap", "dear", cost_usd=0.0001))
        job = asyncio.ensure_future(orchestrator.run(TASK, policy))
        await asyncio.sleep(0.05)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    asyncio.run(main())
    assert sorted(bill) == [("cheap", 0.001), ("dear", 0.005), ("router", 0.0001)]


def test_what_a_failed_call_has_consumed_is_part_of_the_episodes_cost():
    async def break_off(request: FleetRequest) -> Completion:
        report_lost(0.003)
        raise RuntimeError("stream broke off")

    episode = run(calls("dear"), Decision("x"), fleet=ScriptedFleet(behaviour={"dear": break_off}))
    assert episode.models_cost_usd == pytest.approx(0.003)
    assert episode.errors == ("RuntimeError: stream broke off",)


def test_a_call_that_would_break_the_budget_is_refused_and_cheaper_ones_go_on():
    policy = Script(calls("dear", "cheap"), Decision("", (select("cheap"),)))
    orchestrator = Orchestrator(ScriptedFleet(), limits=Limits(budget_usd=0.005))
    episode = asyncio.run(orchestrator.run(TASK, policy))
    assert ending(episode)[:3] == ("selected", "select", "cheap")
    assert errors(episode).startswith("budget: calling dear would cost about $0.0100, $0.0050 is")


def test_parallel_calls_share_one_budget():
    episode = run(calls("cheap", "rival"), Decision("x"), limits=Limits(budget_usd=0.0015))
    assert [c.model for c in episode.calls] == ["cheap"]
    assert "budget: calling rival" in errors(episode)


def test_an_overspent_budget_ends_the_episode_with_the_best_answer():
    async def surprise(request: FleetRequest) -> Completion:
        return Completion(request.model, "long", "42", cost_usd=1.0)

    fleet = ScriptedFleet(behaviour={"cheap": surprise})
    limits = Limits(budget_usd=0.01)
    episode = run(calls("cheap"), calls("dear"), fleet=fleet, limits=limits)
    assert ending(episode) == ("budget", "fallback", "cheap", "long")
    assert len(fleet.requests) == 1


def test_within_a_budget_each_call_is_told_what_it_may_cost_and_the_sum_stays_inside():
    fleet = ScriptedFleet()
    run(calls("cheap", "rival"), Decision("x"), fleet=fleet, limits=Limits(budget_usd=0.01))
    allowed = [r.max_cost_usd for r in fleet.requests]
    assert all(usd >= CATALOG["cheap"].typical_cost(3) for usd in allowed)
    assert sum(allowed) == pytest.approx(0.01)


# The record


def test_the_record_names_task_policy_world_mode_weight_and_seed():
    episode = run(Decision("x"), cost_weight=0.5, seed=3)
    assert (episode.task_id, episode.policy, episode.world, episode.mode) == (
        "t1",
        "script",
        "simulated",
        "agent",
    )
    assert (episode.cost_weight, episode.seed, episode.quality) == (0.5, 3, None)
    assert episode.to_dict()["cost_usd"] == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"max_turns": 0},
        {"max_calls_per_turn": 0},
        {"call_timeout_s": 0},
        {"episode_timeout_s": -1},
        {"budget_usd": 0},
    ],
)
def test_impossible_limits_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"limits.{next(iter(bad))}"):
        Limits(**bad)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode='fast'; use 'agent' or 'simple'"):
        Orchestrator(ScriptedFleet(), mode="fast")
