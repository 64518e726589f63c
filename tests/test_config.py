import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from xrouter.config import ConfigError, StrictModel, load_config, parse_config, set_key


class Optimizer(StrictModel):
    lr: float = 1e-3
    name: str = "adamw"


class Stage(StrictModel):
    steps: int


class Config(StrictModel):
    seed: int = 0
    optimizer: Optimizer = Optimizer()
    warmup: Stage | None = None
    stages: list[Stage] = Field(default_factory=list)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\noptimizer: {lr: 0.5}\n")
    return path


def test_values_come_from_the_file_and_defaults_fill_the_rest(config_file):
    config = load_config(config_file, Config)
    assert (config.seed, config.optimizer.lr, config.optimizer.name) == (3, 0.5, "adamw")


def test_an_empty_file_means_all_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load_config(path, Config) == Config()


def test_overrides_win_over_the_file_and_reach_nested_keys(config_file):
    config = load_config(config_file, Config, ["optimizer.lr=1e-4", "seed=7", "warmup.steps=2"])
    assert (config.optimizer.lr, config.seed, config.warmup) == (1e-4, 7, Stage(steps=2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 1", "sed: unknown key; known here: seed, optimizer, warmup, stages"),
        ("optimizer: {rate: 1}", "optimizer.rate: unknown key; known here: lr, name"),
        ("warmup: {step: 1}", "warmup.step: unknown key; known here: steps"),
        ("stages: [{steps: 1}, {step: 1}]", "stages.1.step: unknown key; known here: steps"),
        ("seed: many", "seed='many': Input should be a valid integer"),
        ("[1, 2]", "expected a mapping at the top, found list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_bad_file_is_refused_with_file_key_and_mend(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(path, Config)
    assert "bad.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such config file"):
        load_config(tmp_path / "none.yaml", Config)


def test_configs_cannot_be_changed_after_loading():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 5


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("k=1", 1),
        ("k=1e-4", 1e-4),
        ("k=-2.5E3", -2500.0),
        ("k=true", True),
        ("k=null", None),
        ("k=[a, b]", ["a", "b"]),
        ("k='1'", "1"),
        ("k=infinity", "infinity"),
        ("k=a=b", "a=b"),
        ("k=", ""),
    ],
)
def test_override_values_are_read_as_yaml(item, value):
    raw: dict = {}
    set_key(raw, item)
    assert raw == {"k": value}
    assert type(raw["k"]) is type(value)


@pytest.mark.parametrize("item", ["lr", "=1", ""])
def test_an_override_without_key_or_value_says_how_to_write_one(item):
    with pytest.raises(ConfigError, match="write key=value, for example"):
        set_key({}, item)


def test_an_override_below_a_plain_value_is_refused():
    with pytest.raises(ConfigError, match="'seed' is a value, not a section"):
        set_key({"seed": 1}, "seed.x=1")


@given(st.text(), st.text())
def test_any_override_is_applied_or_refused_with_a_config_error(key, value):
    raw: dict = {}
    try:
        set_key(raw, f"{key}={value}")
    except ConfigError:
        assert not key.strip() or "=" in key
        return
    assert raw


def test_errors_of_a_dict_name_where_it_came_from():
    with pytest.raises(ConfigError, match=r"run\.json: seed='x'"):
        parse_config({"seed": "x"}, Config, where="run.json")
