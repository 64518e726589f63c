"""Which providers can be used here: API keys from the environment, read from ``.env`` too.

Keys are handed to LiteLLM and kept nowhere else; error texts pass through :func:`redact`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from xrouter.catalog import Catalog, ModelSpec
from xrouter.config import StrictModel

_SECRET = re.compile(r"\b(sk|xr|tgp|gsk|AIza)[-_A-Za-z0-9]{6,}|(?<=Bearer )\S+")


class ProviderConfig(StrictModel):
    """How to reach one provider. ``api_key_env`` lists environment variables, first found wins;
    empty: the endpoint needs no key. ``api_base`` overrides the provider's own address."""

    api_key_env: tuple[str, ...] = ()
    api_base: str | None = None


DEFAULT_PROVIDERS: Mapping[str, ProviderConfig] = {
    "openai": ProviderConfig(api_key_env=("OPENAI_API_KEY",)),
    "together": ProviderConfig(api_key_env=("TOGETHER_API_KEY", "TOGETHERAI_API_KEY")),
    "gemini": ProviderConfig(api_key_env=("GEMINI_API_KEY", "GOOGLE_API_KEY")),
}


class ProvidersConfig(StrictModel):
    """Providers by the name that ``configs/models.yaml`` gives them."""

    providers: dict[str, ProviderConfig] = Field(default_factory=lambda: dict(DEFAULT_PROVIDERS))


def read_env_file(path: str | Path) -> list[str]:
    """Add ``KEY=value`` lines of a ``.env`` file to the environment, which wins where both have a
    name. Returns the names that were added. A missing file is no error."""
    from dotenv import dotenv_values

    file = Path(path)
    if not file.is_file():
        return []
    added = []
    for name, value in dotenv_values(file).items():
        if value and name not in os.environ:
            os.environ[name] = value
            added.append(name)
    return added


def api_key(config: ProviderConfig, environment: Mapping[str, str] | None = None) -> str | None:
    """The provider's key; ``none`` where no key is needed; None where one is missing."""
    values = os.environ if environment is None else environment
    if not config.api_key_env:
        return "none"
    return next((values[name] for name in config.api_key_env if values.get(name)), None)


def usable_models(
    catalog: Catalog,
    providers: Mapping[str, ProviderConfig],
    environment: Mapping[str, str] | None = None,
) -> tuple[list[ModelSpec], dict[str, str]]:
    """The models whose provider has a key, and why each of the others is left out."""
    usable: list[ModelSpec] = []
    left_out: dict[str, str] = {}
    for spec in catalog:
        config = providers.get(spec.provider)
        if config is None:
            left_out[spec.id] = f"provider {spec.provider!r} is not configured"
        elif api_key(config, environment) is None:
            left_out[spec.id] = f"set {' or '.join(config.api_key_env)}"
        else:
            usable.append(spec)
    return usable, left_out


def restrict(catalog: Catalog, models: list[ModelSpec]) -> Catalog:
    """The catalog with ``models`` only; pools keep those of their members."""
    ids = {m.id for m in models}
    pools = {name: [i for i in members if i in ids] for name, members in catalog.pools.items()}
    return Catalog(
        models,
        pools={name: members for name, members in pools.items() if members},
        router_price=catalog.router_price,
        price_date=catalog.price_date,
    )


def redact(text: str) -> str:
    """The text without anything that looks like an API key."""
    return _SECRET.sub("[redacted]", text)
