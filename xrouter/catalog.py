"""Who can be called and what it costs: models, tiers, dated prices, fixed pools.

Prices are USD per million tokens. The catalog is the only source of prices in the project, so
a cost can always be traced to one line of ``configs/models.yaml`` (or of a recording's
``prices.csv``) and to the day it was read.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TIERS = ("premium", "standard", "budget", "specialized")
TOOL_PREFIX = "call_"
MAX_TOOL_NAME = 64


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: identity, price, limits, and what has been published about it."""

    id: str
    input_usd_per_million: float
    output_usd_per_million: float
    tiers: tuple[str, ...]
    name: str = ""
    provider: str = ""
    litellm_id: str = ""
    cached_input_usd_per_million: float | None = None
    context_window: int = 128_000
    max_output_tokens: int = 16_384
    capabilities: tuple[str, ...] = ()
    thinking: bool = False
    typical_output_tokens: int = 600
    scores: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def tool_name(self) -> str:
        return tool_name(self.id)

    @property
    def tier(self) -> str:
        """The tier shown to the router: the first one listed."""
        return self.tiers[0]

    @property
    def prices(self) -> tuple[float, ...]:
        """The prices there are: input, output and, where the provider has one, cached input."""
        cached = self.cached_input_usd_per_million
        listed = (self.input_usd_per_million, self.output_usd_per_million)
        return listed if cached is None else (*listed, cached)

    def cost(self, input_tokens: int, output_tokens: int, cached_input_tokens: int = 0) -> float:
        """USD for one call. ``cached_input_tokens`` are part of ``input_tokens``, billed at the
        cached price where the provider has one."""
        if min(input_tokens, output_tokens, cached_input_tokens) < 0:
            raise ValueError(f"{self.id}: token counts must be >= 0")
        if cached_input_tokens > input_tokens:
            raise ValueError(
                f"{self.id}: cached_input_tokens={cached_input_tokens} exceeds "
                f"input_tokens={input_tokens}"
            )
        cached_price = self.cached_input_usd_per_million
        if cached_price is None:
            cached_price = self.input_usd_per_million
        return (
            (input_tokens - cached_input_tokens) * self.input_usd_per_million
            + cached_input_tokens * cached_price
            + output_tokens * self.output_usd_per_million
        ) / 1e6

    def typical_cost(self, input_tokens: int = 300) -> float:
        """USD for a call of typical output length; for budgets and ordering, not for billing."""
        return self.cost(input_tokens, self.typical_output_tokens)


@cache
def tool_name(model_id: str) -> str:
    """``gpt-4.1-mini`` -> ``call_gpt_4_1_mini``."""
    return TOOL_PREFIX + re.sub(r"[^a-z0-9]+", "_", model_id.lower()).strip("_")


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens for the router's own tokens."""

    input_usd_per_million: float = 0.04
    output_usd_per_million: float = 0.10

    def cost(self, input_tokens: int, output_tokens: int) -> float:
        return (
            input_tokens * self.input_usd_per_million + output_tokens * self.output_usd_per_million
        ) / 1e6


class Catalog:
    """An ordered set of models with named pools; tool names map one-to-one to model ids."""

    def __init__(
        self,
        models: Iterable[ModelSpec],
        *,
        pools: Mapping[str, Iterable[str]] | None = None,
        router_price: Price | None = None,
        price_date: str = "",
    ) -> None:
        self.models: dict[str, ModelSpec] = {}
        self._by_tool: dict[str, str] = {}
        for spec in models:
            if spec.id in self.models:
                raise ValueError(f"catalog: model {spec.id!r} is listed twice; remove one entry")
            if not re.search(r"[A-Za-z0-9]", spec.id):
                raise ValueError(f"catalog: model id {spec.id!r} needs a letter or digit")
            if spec.tool_name in self._by_tool:
                raise ValueError(
                    f"catalog: {spec.id!r} and {self._by_tool[spec.tool_name]!r} would both be "
                    f"called {spec.tool_name!r}; rename one"
                )
            if not spec.tiers or set(spec.tiers) - set(TIERS):
                raise ValueError(
                    f"catalog: {spec.id}: tiers={list(spec.tiers)}; use one or more of {TIERS}"
                )
            if len(spec.tool_name) > MAX_TOOL_NAME:
                raise ValueError(
                    f"catalog: {spec.id}: tool name {spec.tool_name!r} is longer than the "
                    f"{MAX_TOOL_NAME} characters that function calling allows; shorten the id"
                )
            if not all(0 <= price < math.inf for price in spec.prices):
                raise ValueError(f"catalog: {spec.id}: prices must be finite and >= 0")
            self.models[spec.id] = spec
            self._by_tool[spec.tool_name] = spec.id
        self.pools = {name: tuple(ids) for name, ids in (pools or {}).items()}
        for name, ids in self.pools.items():
            if bad := [i for i in ids if i not in self.models]:
                raise ValueError(f"catalog: pool {name!r} names unknown models {bad}")
        self.router_price = router_price or Price()
        self.price_date = price_date

    def __getitem__(self, model_id: str) -> ModelSpec:
        try:
            return self.models[model_id]
        except KeyError:
            raise KeyError(
                f"unknown model {model_id!r}; the catalog has {', '.join(self.models)}"
            ) from None

    def __contains__(self, model_id: object) -> bool:
        return model_id in self.models

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self.models.values())

    def __len__(self) -> int:
        return len(self.models)

    def model_id(self, tool: str) -> str | None:
        """The model behind a tool name, or None."""
        return self._by_tool.get(tool)

    def select(self, ids: Iterable[str]) -> tuple[ModelSpec, ...]:
        return tuple(self[i] for i in ids)

    def pool(self, name: str) -> tuple[str, ...]:
        """A named pool, ``all``, or a comma-separated list of model ids."""
        if name == "all":
            return tuple(self.models)
        if name in self.pools:
            return self.pools[name]
        ids = tuple(part.strip() for part in name.split(",") if part.strip())
        if ids and all(i in self.models for i in ids):
            return ids
        raise ValueError(
            f"pool={name!r} is neither a named pool ({', '.join(['all', *self.pools])}) nor a "
            "comma-separated list of known model ids"
        )

    def tier(self, tier: str) -> tuple[ModelSpec, ...]:
        if tier not in TIERS:
            raise ValueError(f"tier={tier!r}; use one of {TIERS}")
        return tuple(m for m in self if tier in m.tiers)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Catalog:
        """Read ``configs/models.yaml`` (the default) or a file of the same shape."""
        if path is None:
            from xrouter.provenance import repo_root

            path = repo_root() / "configs" / "models.yaml"
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or "models" not in raw:
            raise ValueError(f"{path}: expected a mapping with a 'models' list")
        if unknown := set(raw) - {"price_date", "router", "models", "pools"}:
            raise ValueError(f"{path}: unknown keys {sorted(unknown)}")
        return cls(
            [_spec(row, path) for row in raw["models"]],
            pools=raw.get("pools"),
            router_price=_router_price(raw.get("router"), path),
            price_date=str(raw.get("price_date", "")),
        )

    @classmethod
    def from_prices(cls, path: str | Path) -> Catalog:
        """A catalog for a recording: ``prices.csv`` with columns model, input_usd_per_million,
        output_usd_per_million. Tiers are thirds of the price order (budget, standard, premium).
        """
        with open(path, newline="", encoding="utf-8") as handle:
            rows = list(csv.DictReader(handle))
        need = {"model", "input_usd_per_million", "output_usd_per_million"}
        if not rows or (missing := need - set(rows[0])):
            raise ValueError(
                f"{path}: needs rows with the columns {sorted(need)}; missing "
                f"{sorted(missing) if rows else 'all rows'}"
            )
        prices: dict[str, tuple[float, float]] = {}
        for number, row in enumerate(rows, 2):
            if row["model"] in prices:
                raise ValueError(f"{path}: line {number}: model {row['model']!r} is listed twice")
            try:
                price = float(row["input_usd_per_million"]), float(row["output_usd_per_million"])
            except (TypeError, ValueError):
                raise ValueError(f"{path}: line {number}: prices must be numbers") from None
            prices[row["model"]] = price
        order = sorted(prices, key=lambda m: (sum(prices[m]), m))
        thirds = ("budget", "standard", "premium")
        tier = {m: thirds[min(2, 3 * i // len(order))] for i, m in enumerate(order)}
        return cls(ModelSpec(m, inp, out, (tier[m],), name=m) for m, (inp, out) in prices.items())


def _router_price(row: Mapping[str, Any] | None, path: str | Path) -> Price:
    try:
        return Price(**(row or {}))
    except TypeError as error:
        raise ValueError(f"{path}: router: {error}") from None


def _spec(row: Mapping[str, Any], path: str | Path) -> ModelSpec:
    data = dict(row)
    for key in ("tiers", "capabilities"):
        data[key] = tuple(data.get(key) or ())
    try:
        return ModelSpec(**data)
    except TypeError as error:
        raise ValueError(f"{path}: model {row.get('id')!r}: {error}") from None
