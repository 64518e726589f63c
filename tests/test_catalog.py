import dataclasses
import os
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from xrouter.catalog import TIERS, Catalog, ModelSpec, Price, tool_name
from xrouter.provenance import repo_root

CARD_TIERS = {
    "premium": {"gpt-5", "gpt-4.1", "o3", "qwen3-235b-instruct", "kimi-k2"},
    "standard": {"gpt-5-mini", "gpt-4.1-mini", "o4-mini", "gpt-oss-120b"},
    "budget": {"gpt-5-nano", "gpt-4.1-nano", "gpt-4o-mini", "gpt-oss-20b"},
    "specialized": {"o3", "deepseek-r1", "qwen3-235b-thinking", "qwen3-coder-480b"},
}

# Where configs/models.yaml and LiteLLM's bundled price map (1.106) disagree, and why ours stands.
KNOWN_PRICE_DIFFERENCES = {
    ("gpt-4.1-nano", "output"): "the original's 1.40 is kept for comparability; OpenAI lists 0.40",
    ("qwen3-235b-instruct", "missing"): "the map has no entry for Together's -tput deployment",
    ("qwen3-235b-thinking", "missing"): "the map has it for other hosts only",
    ("deepseek-r1", "missing"): "the map has it for other hosts only; Together's price is ours",
    ("deepseek-r1-tput", "missing"): "the map has no entry for the throughput deployment",
}


def spec(model_id: str = "m", inp: float = 1.0, out: float = 2.0, **kw) -> ModelSpec:
    return ModelSpec(model_id, inp, out, kw.pop("tiers", ("budget",)), **kw)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load()


def test_shipped_catalog_has_twenty_models_or_more_with_complete_entries(catalog):
    assert len(catalog) >= 20
    for model in catalog:
        assert all((model.name, model.provider, model.litellm_id, model.capabilities)), model.id
        assert 0 < model.input_usd_per_million <= model.output_usd_per_million
        assert 0 < model.max_output_tokens <= model.context_window


def test_every_tier_holds_the_models_of_the_model_card(catalog):
    for tier, members in CARD_TIERS.items():
        assert members <= {m.id for m in catalog.tier(tier)}, tier
    assert set(CARD_TIERS) == set(TIERS)


def test_only_o3_stands_in_two_tiers(catalog):
    assert [m.id for m in catalog if len(m.tiers) > 1] == ["o3"]


def test_prices_carry_the_day_they_were_read(catalog):
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", catalog.price_date)


def test_thinking_models_are_planned_with_longer_outputs_than_their_tier_peers(catalog):
    def mean(models):
        return sum(m.typical_output_tokens for m in models) / len(models)

    thinking = [m for m in catalog if m.thinking]
    others = [m for m in catalog if not m.thinking]
    assert mean(thinking) > 2 * mean(others)


def test_tool_name_follows_the_documented_form():
    assert tool_name("gpt-4.1-mini") == "call_gpt_4_1_mini"
    assert tool_name("Qwen/Qwen3-235B") == "call_qwen_qwen3_235b"


def test_tool_names_map_one_to_one_to_model_ids(catalog):
    assert {catalog.model_id(m.tool_name): m.tool_name for m in catalog} == {
        m.id: tool_name(m.id) for m in catalog
    }
    assert catalog.model_id("call_nobody") is None


@given(st.lists(st.text("abAB12.-_/ é", min_size=1, max_size=8), max_size=6))
def test_any_accepted_catalog_is_a_bijection_of_valid_function_names(ids):
    try:
        catalog = Catalog([spec(i) for i in ids])
    except ValueError:
        return
    tools = [m.tool_name for m in catalog]
    assert len(set(tools)) == len(ids)
    assert [catalog.model_id(t) for t in tools] == ids
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", t) for t in tools)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([spec("a"), spec("a")], "listed twice"),
        ([spec("gpt-4.1"), spec("gpt-4-1")], "both be called 'call_gpt_4_1'"),
        ([spec("模型")], "needs a letter or digit"),
        ([spec("m" * 70)], "longer than the 64 characters"),
        ([spec(tiers=())], "use one or more of"),
        ([spec(tiers=("luxury",))], "luxury"),
        ([spec(inp=-1.0)], "finite and >= 0"),
        ([spec(out=float("nan"))], "finite and >= 0"),
        ([spec(cached_input_usd_per_million=-0.1)], "finite and >= 0"),
    ],
)
def test_a_bad_catalog_is_refused_with_its_reason(models, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Catalog(models)


def test_cost_is_tokens_times_price():
    assert spec(inp=2.0, out=8.0).cost(1_000, 500) == pytest.approx(0.002 + 0.004)
    assert Price(0.04, 0.10).cost(1_000_000, 1_000_000) == pytest.approx(0.14)


def test_cached_tokens_are_part_of_the_input_and_billed_at_their_own_price():
    model = spec(inp=2.0, out=8.0, cached_input_usd_per_million=0.5)
    assert model.cost(1_000_000, 0, 400_000) == pytest.approx(0.6 * 2.0 + 0.4 * 0.5)


def test_without_a_cached_price_cached_tokens_cost_as_input():
    assert spec().cost(1_000, 10, 900) == pytest.approx(spec().cost(1_000, 10))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_caching_never_makes_a_call_dearer_and_cost_grows_with_tokens(inp, out, cached):
    model = spec(inp=2.0, out=8.0, cached_input_usd_per_million=0.5)
    cached = min(cached, inp)
    assert 0 <= model.cost(inp, out, cached) <= model.cost(inp, out)
    assert model.cost(inp, out) < model.cost(inp + 1, out + 1)


@pytest.mark.parametrize("tokens", [(-1, 0, 0), (0, -1, 0), (5, 0, -1)])
def test_negative_token_counts_are_refused(tokens):
    with pytest.raises(ValueError, match="m: token counts must be >= 0"):
        spec().cost(*tokens)


def test_more_cached_tokens_than_input_tokens_are_refused():
    with pytest.raises(ValueError, match="cached_input_tokens=6 exceeds input_tokens=5"):
        spec().cost(5, 0, 6)


def test_fixed_pools_have_the_members_of_the_original(catalog):
    assert set(catalog.pool("set1")) < set(catalog.pool("set2"))
    assert set(catalog.pool("set2")) - set(catalog.pool("set1")) == {
        "gpt-4o-mini",
        "gpt-4.1-mini",
        "gpt-4.1-nano",
        "qwen3-coder-480b",
        "kimi-k2",
    }
    assert catalog.pool("set3") == ("gpt-4.1-nano", "gpt-oss-120b", "gpt-oss-20b", "kimi-k2")
    assert len(catalog.pool("offload12")) == 12


def test_a_pool_is_a_name_or_all_or_a_list_of_ids(catalog):
    assert catalog.pool("all") == tuple(catalog.models)
    assert catalog.pool("o3, gpt-5") == ("o3", "gpt-5")
    with pytest.raises(ValueError, match=r"set9.*set1.*comma-separated"):
        catalog.pool("set9")
    with pytest.raises(ValueError, match="comma-separated"):
        catalog.pool(" , ")


def test_a_pool_with_unknown_members_is_refused():
    with pytest.raises(ValueError, match=r"pool 'p' names unknown models \['x'\]"):
        Catalog([spec()], pools={"p": ["m", "x"]})


def test_unknown_model_and_tier_are_named_in_the_error(catalog):
    with pytest.raises(KeyError, match="unknown model 'gpt-9'"):
        catalog["gpt-9"]
    with pytest.raises(ValueError, match="tier='luxury'"):
        catalog.tier("luxury")


def test_a_recording_becomes_a_catalog_with_price_thirds_as_tiers(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text(
        "model,input_usd_per_million,output_usd_per_million\nbig,10,30\nsmall,0.1,0.2\nmid,1,3\n"
    )
    catalog = Catalog.from_prices(path)
    assert list(catalog.models) == ["big", "small", "mid"]
    assert {m.id: m.tier for m in catalog} == {
        "small": "budget",
        "mid": "standard",
        "big": "premium",
    }
    assert catalog["big"].cost(1_000_000, 1_000_000) == pytest.approx(40)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "all rows"),
        ("model,input_usd_per_million\na,1\n", r"missing \['output_usd_per_million'\]"),
        ("model,input_usd_per_million,output_usd_per_million\na,1,x\n", "line 2: prices must be"),
        ("model,input_usd_per_million,output_usd_per_million\na,1\n", "line 2: prices must be"),
        ("model,input_usd_per_million,output_usd_per_million\na,1,2\na,1,2\n", "line 3: model 'a'"),
    ],
)
def test_a_bad_price_file_is_refused_with_file_and_line(tmp_path, text, message):
    path = tmp_path / "prices.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"prices\.csv.*{message}"):
        Catalog.from_prices(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": []}, r"unknown keys \['model'\]"),
        ({"models": [{"id": "a", "price": 1}]}, "model 'a'"),
        ({"router": {"price": 1}}, "router:"),
    ],
)
def test_a_catalog_file_with_unknown_keys_is_refused(tmp_path, change, message):
    raw = yaml.safe_load((repo_root() / "configs" / "models.yaml").read_text())
    path = tmp_path / "models.yaml"
    path.write_text(yaml.safe_dump(raw | change))
    with pytest.raises(ValueError, match=rf"models\.yaml.*{message}"):
        Catalog.load(path)


def test_model_specs_cannot_be_changed_in_place(catalog):
    with pytest.raises(dataclasses.FrozenInstanceError):
        catalog["gpt-5"].input_usd_per_million = 0.0


def test_prices_differ_from_litellms_bundled_map_only_where_we_say_so(catalog, monkeypatch):
    """A new difference means that our dated price or LiteLLM's moved: look at it, then either
    correct configs/models.yaml or list the difference above with its reason."""
    monkeypatch.setitem(os.environ, "LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    keys = {
        "input": ("input_usd_per_million", "input_cost_per_token"),
        "output": ("output_usd_per_million", "output_cost_per_token"),
        "cached": ("cached_input_usd_per_million", "cache_read_input_token_cost"),
    }
    found = set()
    for model in catalog:
        entry = litellm.model_cost.get(model.litellm_id)
        if entry is None:
            found.add((model.id, "missing"))
            continue
        for kind, (ours, theirs) in keys.items():
            price, listed = getattr(model, ours), entry.get(theirs)
            if (price is None) != (listed is None) or (
                price is not None and price != pytest.approx(1e6 * listed)
            ):
                found.add((model.id, kind))
    assert found == set(KNOWN_PRICE_DIFFERENCES)
