"""Typed YAML: an unknown key or a value of the wrong kind is an error that names it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class StrictModel(BaseModel):
    """Base of every config section: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ConfigError(ValueError):
    """A config that cannot be used; the message names the file, the key and the mend."""


T = TypeVar("T", bound=StrictModel)
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def load_config(path: str | Path, schema: type[T], overrides: Iterable[str] = ()) -> T:
    """Read YAML into ``schema``; ``overrides`` are ``dotted.key=value`` with YAML values."""
    file = Path(path)
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping at the top, found {type(raw).__name__}")
    for item in overrides:
        set_key(raw, item)
    return parse_config(raw, schema, where=str(path))


def parse_config(raw: dict[str, Any], schema: type[T], *, where: str = "config") -> T:
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                lines.append(f"{key}: unknown key; known here: {_known(schema, item['loc'][:-1])}")
            else:
                lines.append(f"{key}={item.get('input')!r}: {item['msg']}")
        raise ConfigError(f"{where}: " + "; ".join(lines)) from None


def set_key(raw: dict[str, Any], item: str) -> None:
    """Apply one ``dotted.key=value`` to a nested dict."""
    key, eq, text = item.partition("=")
    if not eq or not key.strip():
        raise ConfigError(f"--set {item!r}: write key=value, for example optimizer.lr=1e-4")
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        value = text
    if _EXPONENT.fullmatch(text.strip()):
        value = float(text)  # YAML reads 1e-4 as text
    node = raw
    *parents, last = key.strip().split(".")
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {item!r}: {part!r} is a value, not a section")
        node = child
    node[last] = value


def _known(schema: type[BaseModel], location: tuple[int | str, ...]) -> str:
    model: Any = schema
    for part in location:
        if isinstance(part, int):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        model = _section(getattr(field, "annotation", None))
    return ", ".join(getattr(model, "model_fields", {})) or "nothing"


def _section(annotation: Any) -> Any:
    """The config section inside ``Section | None``, ``list[Section]`` or ``dict[str, Section]``."""
    if hasattr(annotation, "model_fields"):
        return annotation
    return next((s for a in get_args(annotation) if (s := _section(a)) is not None), None)
