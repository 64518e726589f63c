"""Episodes as token batches: masks, shared prompts, and the gradients they give."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from support_recordings import frames, write
from transformers import Qwen2ForCausalLM

from xrouter.episode import Decision, Episode, TokenTrace, Turn
from xrouter.fleets.recorded import RecordedFleet
from xrouter.orchestrator import Limits, Orchestrator
from xrouter.policies.cards import cards_from_catalog
from xrouter.policies.codec import Codec, train_tokenizer
from xrouter.policies.engine import Engine
from xrouter.policies.local import LocalPolicy, build_model
from xrouter.training.rollout import (
    Job,
    TokenSequence,
    make_batch,
    own_logprobs,
    roll_out,
    token_sequence,
)
from xrouter.training.warmstart import RandomStrategies, fit, neutral_reply


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> RecordedFleet:  # type: ignore[no-untyped-def]
    return RecordedFleet(write(tmp_path_factory.mktemp("recording"), *frames(12)))


@pytest.fixture(scope="module")
def codec(fleet: RecordedFleet) -> Codec:
    texts = [t.query for t in fleet.tasks()]
    tokenizer = train_tokenizer(texts, vocab_size=480, names=fleet.catalog.models)
    cards = cards_from_catalog(fleet.catalog)
    return Codec(tokenizer, cards=cards, reference_usd=1e-3, query_tokens=16)


@pytest.fixture(scope="module")
def model(codec: Codec) -> Qwen2ForCausalLM:
    return build_model(codec.tokenizer.get_vocab_size(), hidden_size=32, layers=2, seed=3)


@pytest.fixture(scope="module")
def orchestrator(fleet: RecordedFleet) -> Orchestrator:
    return Orchestrator(fleet, limits=Limits(max_turns=3))


def jobs_of(fleet: RecordedFleet, samples: int = 4) -> list[Job]:
    pool = tuple(fleet.catalog.models)
    return [
        Job(task, pool, 0.1, group, 100 * group + k)
        for group, task in enumerate(fleet.tasks()[:6])
        for k in range(samples)
    ]


@pytest.fixture(scope="module")
def demonstrations(fleet: RecordedFleet, codec: Codec, orchestrator: Orchestrator) -> list[Episode]:
    policy = RandomStrategies(codec, neutral_reply)
    return asyncio.run(roll_out(jobs_of(fleet), policy, orchestrator))


def sequences_of(episodes: list[Episode]) -> list[TokenSequence]:
    return [s for s in map(token_sequence, episodes) if s is not None]


def test_mask_covers_exactly_the_routers_own_tokens(demonstrations: list[Episode]) -> None:
    for episode in demonstrations:
        sequence = token_sequence(episode)
        assert sequence is not None
        for k, turn in enumerate(episode.turns):
            own = [t for t, i in zip(sequence.tokens, sequence.turn, strict=True) if i == k]
            assert turn.decision.trace is not None
            assert tuple(own) == turn.decision.trace.response_ids


def test_sequence_is_the_last_context_plus_the_last_response(
    demonstrations: list[Episode],
) -> None:
    for episode in demonstrations:
        sequence, last = token_sequence(episode), episode.turns[-1].decision.trace
        assert sequence is not None
        assert last is not None
        assert sequence.prompt + sequence.tokens == last.prompt_ids + last.response_ids


def test_an_episode_whose_turns_do_not_connect_is_refused(demonstrations: list[Episode]) -> None:
    episode = next(e for e in demonstrations if len(e.turns) > 1)
    torn = Turn(1, Decision(trace=TokenTrace((1, 2, 3), (4,), (0.0,))))
    with pytest.raises(ValueError, match="does not extend"):
        token_sequence(replace(episode, turns=(episode.turns[0], torn)))


def test_shared_prompt_batch_equals_plain_forward_passes(
    model: Qwen2ForCausalLM, codec: Codec, demonstrations: list[Episode]
) -> None:
    sequences = sequences_of(demonstrations)
    batch = make_batch(sequences, [[0.0]] * len(sequences), codec.pad_id)
    assert batch.prompts.shape[0] == 6
    got, _ = own_logprobs(model, batch)
    want: list[float] = []
    for s in sequences:
        with torch.no_grad():
            logits = model(torch.tensor([s.prompt + s.tokens])).logits[0].float()
        logp = torch.log_softmax(logits, -1)
        start = len(s.prompt)
        want += [
            float(logp[start + i - 1, token]) for i, token in enumerate(s.tokens) if s.turn[i] >= 0
        ]
    assert got.tolist() == pytest.approx(want, abs=1e-4)


def test_shared_prompt_gradients_equal_plain_ones(
    model: Qwen2ForCausalLM, codec: Codec, demonstrations: list[Episode]
) -> None:
    sequences = sequences_of(demonstrations)[:4]
    batch = make_batch(sequences, [[0.0]] * 4, codec.pad_id)
    model.zero_grad()
    own_logprobs(model, batch)[0].sum().backward()
    shared = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    for s in sequences:
        logits = model(torch.tensor([s.prompt + s.tokens])).logits[0].float()
        logp = torch.log_softmax(logits, -1)
        rows = [len(s.prompt) + i - 1 for i, t in enumerate(s.turn) if t >= 0]
        ids = [t for t, k in zip(s.tokens, s.turn, strict=True) if k >= 0]
        logp[rows, ids].sum().backward()
    plain = [p.grad for p in model.parameters() if p.grad is not None]
    for a, b in zip(shared, plain, strict=True):
        assert torch.allclose(a, b, atol=2e-4, rtol=1e-3)


def test_turn_advantages_land_on_the_tokens_of_their_turn(codec: Codec) -> None:
    sequence = TokenSequence(
        (5, 6), (7, 8, 9, 10), (0, 0, -1, 1), (-0.1, -0.2, 0.0, -0.3), (0,) * 4
    )
    batch = make_batch([sequence], [[2.0, -3.0]], codec.pad_id)
    assert batch.advantages.tolist() == [[2.0, 2.0, 0.0, -3.0]]
    assert batch.mask.tolist() == [[True, True, False, True]]


def test_sampled_logprobs_equal_the_training_forward_pass(
    fleet: RecordedFleet, codec: Codec, model: Qwen2ForCausalLM, orchestrator: Orchestrator
) -> None:
    engine = Engine(model, pad_id=codec.pad_id, end_id=codec.end_id, max_new_tokens=8)
    policy = LocalPolicy(codec, engine)
    episodes = asyncio.run(roll_out(jobs_of(fleet), policy, orchestrator))
    sequences = sequences_of(episodes)
    batch = make_batch(sequences, [[0.0]] * len(sequences), codec.pad_id)
    with torch.no_grad():
        now, _ = own_logprobs(model, batch, codec.choice_table)
    assert torch.allclose(now, batch.old_logp[batch.mask], atol=2e-4)


def test_demonstrations_are_valid_varied_and_blind_to_outcomes(
    demonstrations: list[Episode],
) -> None:
    assert not any(e.errors for e in demonstrations)
    assert {"direct", "select"} <= {e.answer_source for e in demonstrations}
    assert len({c.model for e in demonstrations for c in e.calls}) == 4
    assert {len(e.turns) for e in demonstrations} >= {1, 2}


def test_warm_start_lowers_the_loss(codec: Codec, demonstrations: list[Episode]) -> None:
    fresh = build_model(codec.tokenizer.get_vocab_size(), hidden_size=32, layers=2, seed=5)
    losses: list[float] = []
    fit(
        fresh,
        [sequences_of(demonstrations[i : i + 4]) for i in range(0, 24, 4)],
        pad_id=codec.pad_id,
        epochs=30,
        groups_per_batch=2,
        learning_rate=5e-3,
        seed=0,
        table=codec.choice_table,
        progress=lambda _, loss: losses.append(loss),
    )
    first_epoch, last_epoch = sum(losses[:3]), sum(losses[-3:])
    assert last_epoch < 0.6 * first_epoch
