"""The local router: codec, batched engine, and the policy around them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xrouter.catalog import Catalog, ModelSpec
from xrouter.episode import (
    Completion,
    Decision,
    State,
    Task,
    TokenTrace,
    ToolCall,
    ToolResult,
    Turn,
)
from xrouter.policies import codec as cd
from xrouter.policies.cards import Card, cards_from_outcomes, shortlist
from xrouter.policies.codec import Codec, cost_bin, nearest_weight, train_tokenizer
from xrouter.policies.engine import Engine, Prompt
from xrouter.policies.local import LocalPolicy, build_model, load_policy, save_policy
from xrouter.tools import ModelCall, parse_tool_calls, resolve

SPECS = (
    ModelSpec("cheap-1", 0.1, 0.2, ("budget",)),
    ModelSpec("mid-2", 1.0, 2.0, ("standard",)),
    ModelSpec("dear-3", 10.0, 20.0, ("premium",)),
)
CARDS = {"cheap-1": Card(1e-4, 0.5), "mid-2": Card(1e-3, 0.7), "dear-3": Card(1e-2, 0.9)}
TEXTS = ["What is 17 + 25?", "Write a function that sorts a list.", "hello there"] * 5


@pytest.fixture(scope="module")
def codec() -> Codec:
    tokenizer = train_tokenizer(TEXTS, vocab_size=460, names=CARDS)
    return Codec(tokenizer, cards=CARDS, reference_usd=0.01, query_tokens=16, max_pool=8)


@pytest.fixture(scope="module")
def engine(codec: Codec) -> Engine:
    model = build_model(codec.tokenizer.get_vocab_size(), hidden_size=32, layers=2, seed=1)
    return Engine(model, pad_id=codec.pad_id, end_id=codec.end_id, max_new_tokens=10)


def state_of(query: str = "What is 17 + 25?", **kwargs: object) -> State:
    return replace(State(Task("t", query), SPECS), **kwargs)  # type: ignore[arg-type]


def turn_of(codec: Codec, state: State, *answers: tuple[str, str | None]) -> Turn:
    ids = codec.encode_action(codec.view(state.pool), [m for m, _ in answers])
    root, tail = codec.encode(state)
    trace = TokenTrace((*root, *tail), tuple(ids), (0.0,) * len(ids))
    results = tuple(
        ToolResult(ToolCall(f"call_{m}"), Completion(m, str(a), a, cost_usd=1e-4))
        for m, a in answers
    )
    return Turn(len(state.turns), Decision(trace=trace), results)


def shown(codec: Codec, ids: tuple[int, ...]) -> str:
    return codec.tokenizer.decode(ids, skip_special_tokens=False)


def test_actions_decode_to_hermes_with_real_tool_names(codec: Codec) -> None:
    view = codec.view(SPECS)
    ids = codec.encode_action(view, ["dear-3", "cheap-1"], select="dear-3")
    content, calls, errors = parse_tool_calls(codec.decode(ids, state_of()))
    assert (content, errors) == ("", ())
    assert [c.name for c in calls] == ["call_dear_3", "call_cheap_1", "select_response"]
    assert calls[2].arguments == {"model_call_name": "call_dear_3"}
    assert len(ids) == 10


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_request_text_encodes_within_the_token_limit(codec: Codec, text: str) -> None:
    root, tail = codec.encode(state_of(text))
    pool_tokens = 5 * len(SPECS)
    assert tail == ()
    assert len(root) <= 3 + pool_tokens + 1 + 2 + codec.query_tokens + 2


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(cd.SPECIALS))
def test_a_request_cannot_inject_special_tokens(codec: Codec, special: str) -> None:
    plain, _ = codec.encode(state_of("x"))
    attack, _ = codec.encode(state_of(f"x {special}"))
    marks = {"<|cut|>", *cd.LENGTHS}
    ids = [codec.vocabulary[s] for s in cd.SPECIALS if s not in marks]
    assert all(plain.count(i) == attack.count(i) for i in ids)


def test_slots_are_ordered_by_expected_cost_whatever_the_pool_order(codec: Codec) -> None:
    assert codec.view(SPECS[::-1]).ids == ("cheap-1", "mid-2", "dear-3")


def test_prompt_shows_id_tier_cost_and_quality_of_each_model(codec: Codec) -> None:
    text = shown(codec, codec.encode(state_of())[0])
    assert "<|m0|><|id:cheap-1|><|budget|>" in text
    assert "<|m2|><|id:dear-3|><|premium|>" in text
    assert "<|q6|>" in text


def test_unknown_models_are_spelled_and_still_callable(codec: Codec) -> None:
    state = state_of(pool=(*SPECS, ModelSpec("brand-new", 1.0, 1.0, ("standard",))))
    ids = codec.encode_action(codec.view(state.pool), ["brand-new"])
    assert parse_tool_calls(codec.decode(ids, state))[1][0].name == "call_brand_new"


def test_observation_marks_agreement_missing_answers_and_plurality(codec: Codec) -> None:
    state = state_of()
    turn = turn_of(codec, state, ("cheap-1", "42"), ("mid-2", None), ("dear-3", "42"))
    text = shown(codec, codec.encode(replace(state, turns=(turn,)))[1])
    assert "<|m0|><|A|><|m1|><|none|><|m2|><|A|><|best|><|m2|><|x2|>" in text
    assert "<|t2|>" in text


def test_best_points_at_the_plurality(codec: Codec) -> None:
    state = state_of()
    turn = turn_of(codec, state, ("cheap-1", "42"), ("mid-2", "42"), ("dear-3", "7"))
    state = replace(state, turns=(turn,))
    ids = codec.encode_action(codec.view(SPECS), [], select=cd.BEST)
    call = parse_tool_calls(codec.decode(ids, state))[1][0]
    assert call.arguments == {"model_call_name": "call_mid_2"}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=40, max_size=40), st.booleans(), st.booleans())
def test_every_walk_through_the_grammar_is_a_turn_that_can_be_carried_out(
    codec: Codec, picks: list[int], continued: bool, simple: bool
) -> None:
    state = state_of(mode="simple" if simple else "agent")
    if continued and not simple:
        turn = turn_of(codec, state, ("cheap-1", "42"), ("mid-2", "41"))
        state = replace(state, turns=(turn,))
    grammar = codec.grammar(state)
    ids: list[int] = []
    for pick in picks:
        options = sorted(grammar.allowed())
        ids.append(options[pick % len(options)])
        grammar.advance(ids[-1])
        if ids[-1] == codec.end_id:
            break
    content, calls, errors = parse_tool_calls(codec.decode(ids, state))
    assert errors == ()
    assert not (content and calls)
    answered = [c.model for c in state.completions]
    asked = [r for c in calls if isinstance(r := resolve(c, SPECS, CARDS), ModelCall)]
    assert len({r.model for r in asked}) == len(asked)
    for call in calls:
        resolve(call, SPECS, [*answered, *(r.model for r in asked)])
    assert len(calls) == 1 or not simple


def test_a_token_outside_the_grammar_is_refused(codec: Codec) -> None:
    with pytest.raises(ValueError, match="not allowed at 'start'"):
        codec.grammar(state_of()).advance(codec.vocabulary[cd.CALL_CLOSE])


def test_guided_samples_stay_in_the_grammar(codec: Codec, engine: Engine) -> None:
    state = state_of()
    root, _ = codec.encode(state)
    prompts = [Prompt(root, (), (i,), codec.grammar(state)) for i in range(64)]
    for sample in engine.generate(prompts):
        assert codec.grammar(state).choices(sample.ids) == sample.choices


def test_each_context_extends_the_one_before(codec: Codec) -> None:
    state = state_of()
    first = codec.encode(state)
    turn = turn_of(codec, state, ("cheap-1", "1"))
    state = replace(state, turns=(turn,))
    second = codec.encode(state)
    assert second[0] == first[0]
    assert second[1][: len(turn.decision.trace.response_ids)] == turn.decision.trace.response_ids


def test_dial_positions_are_monotone_and_zero_is_its_own() -> None:
    weights = np.concatenate([[0.0], np.geomspace(1e-3, 5, 60)])
    read = [nearest_weight(w) for w in weights]
    assert read == sorted(read)
    assert (read[0], read[-1]) == (0.0, cd.COST_WEIGHTS[-1])
    assert [nearest_weight(w) for w in cd.COST_WEIGHTS] == list(cd.COST_WEIGHTS)


def test_a_cost_weight_off_the_trained_dial_is_read_as_the_nearest_on_it(codec: Codec) -> None:
    own = Codec(codec.tokenizer, cards=CARDS, reference_usd=0.01, dial=[0.02, 0.3])
    assert own.encode(state_of(cost_weight=0.4)) == own.encode(state_of(cost_weight=0.3))
    assert own.encode(state_of(cost_weight=0.0)) == own.encode(state_of(cost_weight=0.02))
    assert own.encode(state_of(cost_weight=0.02)) != own.encode(state_of(cost_weight=0.3))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_impossible_cost_weights_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="cost_weight"):
        nearest_weight(bad)


def test_cost_bins_are_monotone() -> None:
    bins = [cost_bin(c, 0.01) for c in (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 100.0)]
    assert bins == sorted(bins)
    assert len(set(bins)) >= 6


def test_shortlist_keeps_the_best_and_the_cheapest_and_orders_by_cost() -> None:
    cards = CARDS | {f"bad-{i}": Card(5e-3 + i * 1e-3, 0.2) for i in range(5)}
    assert shortlist(cards, 3) == ("cheap-1", "mid-2", "dear-3")


def test_cards_average_outcomes_per_model() -> None:
    cards = cards_from_outcomes(["a", "b"], np.array([[1, 0], [0, 0]]), np.array([[2, 4], [4, 4]]))
    assert cards == {"a": Card(3.0, 0.5), "b": Card(4.0, 0.0)}


def test_batched_samples_equal_samples_drawn_alone(engine: Engine) -> None:
    rng = np.random.default_rng(0)
    roots = [tuple(rng.integers(1, 400, n).tolist()) for n in (9, 14, 9)]
    prompts = [
        Prompt(r, tuple(rng.integers(1, 400, k).tolist()), (i, k))
        for i, r in enumerate(roots)
        for k in (0, 3, 7)
    ]
    together = engine.generate(prompts)
    alone = [engine.generate([p])[0] for p in prompts]
    assert [s.ids for s in together] == [s.ids for s in alone]
    for a, b in zip(together, alone, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_logprobs_equal_those_of_a_plain_forward_pass(engine: Engine) -> None:
    prompt = Prompt((5, 9, 33, 21), (8, 7), (3,))
    sample = engine.generate([prompt])[0]
    whole = torch.tensor([[*prompt.root, *prompt.tail, *sample.ids]])
    with torch.no_grad():
        logp = torch.log_softmax(engine.model(whole).logits[0].float(), -1)
    start = len(prompt.root) + len(prompt.tail)
    want = [float(logp[start + i - 1, t]) for i, t in enumerate(sample.ids)]
    assert sample.logprobs == pytest.approx(want, abs=1e-4)


def test_sampling_follows_the_models_distribution(engine: Engine) -> None:
    root = (5, 9, 33, 21)
    samples = engine.generate([Prompt(root, (), (i,)) for i in range(3000)])
    with torch.no_grad():
        p = torch.softmax(engine.model(torch.tensor([root])).logits[0, -1].float(), -1)
    top = int(p.argmax())
    share = np.mean([s.ids[0] == top for s in samples])
    error = 4 * float((p[top] * (1 - p[top]) / 3000).sqrt())
    assert abs(share - float(p[top])) < error


def test_greedy_takes_the_most_likely_token(engine: Engine) -> None:
    root = (5, 9, 33, 21)
    sample = engine.generate([Prompt(root)], greedy=True)[0]
    with torch.no_grad():
        best = int(engine.model(torch.tensor([root])).logits[0, -1].argmax())
    assert sample.ids[0] == best


def test_concurrent_decisions_are_sampled_as_one_batch(codec: Codec, engine: Engine) -> None:
    sizes: list[int] = []

    class Counting(Engine):
        def generate(self, prompts, *, greedy=False):  # type: ignore[no-untyped-def]
            sizes.append(len(prompts))
            return super().generate(prompts, greedy=greedy)

    counting = Counting(engine.model, pad_id=codec.pad_id, end_id=codec.end_id, max_new_tokens=4)
    policy = LocalPolicy(codec, counting)

    async def many() -> list[Decision]:
        return await asyncio.gather(*(policy.decide(state_of(seed=i)) for i in range(20)))

    decisions = asyncio.run(many())
    assert sizes == [20]
    assert all(d.cost_usd > 0 and d.trace is not None for d in decisions)


def test_equal_seeds_give_equal_decisions_and_others_differ(codec: Codec, engine: Engine) -> None:
    policy = LocalPolicy(codec, engine)
    runs = [asyncio.run(policy.decide(state_of(seed=s))) for s in (1, 1, 2)]
    assert runs[0].trace == runs[1].trace
    assert runs[0].trace.response_ids != runs[2].trace.response_ids


def test_an_engine_failure_reaches_every_waiting_request(codec: Codec) -> None:
    class Broken:
        def generate(self, prompts, *, greedy):  # type: ignore[no-untyped-def]
            raise RuntimeError("no memory")

    policy = LocalPolicy(codec, Broken())  # type: ignore[arg-type]

    async def many() -> list[object]:
        jobs = [policy.decide(state_of(seed=i)) for i in range(3)]
        return await asyncio.gather(*jobs, return_exceptions=True)

    assert [str(e) for e in asyncio.run(many())] == ["no memory"] * 3


def test_a_saved_policy_decides_as_before(tmp_path, codec: Codec, engine: Engine) -> None:  # type: ignore[no-untyped-def]
    save_policy(tmp_path, engine.model, codec)
    loaded = load_policy(tmp_path, greedy=True)
    loaded.engine.max_new_tokens = engine.max_new_tokens
    before = asyncio.run(LocalPolicy(codec, engine, greedy=True).decide(state_of()))
    after = asyncio.run(loaded.decide(state_of()))
    assert after.trace is not None
    assert before.trace is not None
    assert after.trace.response_ids == before.trace.response_ids
    assert after.trace.logprobs == pytest.approx(before.trace.logprobs, abs=1e-5)


def test_loading_from_a_folder_without_a_router_says_what_is_missing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FileNotFoundError, match=r"router\.json"):
        load_policy(tmp_path)


def test_vocabulary_too_small_for_the_specials_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size=100"):
        train_tokenizer(TEXTS, vocab_size=100, names=[])


def test_catalog_pool_of_all_models_fits_the_slots() -> None:
    assert len(Catalog.load()) <= cd.MAX_SLOTS
