"""What ``configs/serve.yaml`` may say."""

from __future__ import annotations

import ipaddress
from typing import Literal

from pydantic import Field, model_validator

from xrouter.config import StrictModel
from xrouter.fleets.live import LiveConfig


class PolicyConfig(StrictModel):
    """Who routes.

    ``local``: a trained checkpoint in this process. ``chat``: any OpenAI-compatible endpoint or
    LiteLLM model (``model``, ``api_base``; the key is read from the variable ``api_key_env``).
    ``baseline``: one by ``name``.
    """

    kind: Literal["local", "chat", "baseline"] = "local"
    checkpoint: str = "checkpoints/router-cpu"
    name: str = "agreement"
    model: str = "openai/router-tool-rl"
    api_base: str | None = None
    api_key_env: str = ""
    temperature: float | None = Field(default=None, ge=0, le=2)
    timeout_s: float = Field(default=60.0, gt=0)


class ProfileConfig(StrictModel):
    """A model name that clients can ask for: a position of the cost dial."""

    cost_weight: float = Field(default=0.12, ge=0)
    mode: Literal["agent", "simple"] = "agent"
    pool: str | None = None
    note: str = ""


class ServeConfig(StrictModel):
    """The server. Times in seconds, money in USD.

    ``fleet: auto`` is live where there are provider keys, and simulated otherwise.
    ``require_keys`` null: demanded unless the address is a loopback one.
    ``max_cost_usd`` is what one request of a key with a budget may cost at most (and reserves).
    ``best_single`` and ``backup`` are model ids; null: the pool's best published GPQA-Diamond
    score, and its cheapest model. The backup answers where the router itself fails.
    ``keepalive_s`` is also how long a stream may wait for its first token before its headers are
    sent. ``drain_s`` is how long running requests may go on after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8800, ge=1, le=65535)
    database: str = "sqlite:///.xrouter/ledger.sqlite"
    require_keys: bool | None = None
    fleet: Literal["auto", "live", "simulated"] = "auto"
    simulated_seed: int = 0
    catalog: str = "configs/models.yaml"
    pool: str = "all"
    policy: PolicyConfig = PolicyConfig()
    live: LiveConfig = LiveConfig()
    profiles: dict[str, ProfileConfig] = Field(min_length=1)
    best_single: str | None = None
    backup: str | None = None
    max_turns: int = Field(default=3, ge=1)
    max_calls_per_turn: int = Field(default=8, ge=1)
    call_timeout_s: float = Field(default=180.0, gt=0)
    request_timeout_s: float = Field(default=300.0, gt=0)
    max_cost_usd: float = Field(default=0.5, gt=0)
    max_body_mb: float = Field(default=32.0, gt=0)
    max_concurrent: int = Field(default=2000, ge=1)
    keepalive_s: float = Field(default=5.0, gt=0)
    drain_s: float = Field(default=30.0, ge=0)

    @model_validator(mode="after")
    def _keys_where_others_can_reach(self) -> ServeConfig:
        if self.require_keys is False and not self.is_loopback:
            raise ValueError(
                f"host={self.host!r} can be reached by others: require_keys may not be false"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def keys_required(self) -> bool:
        return not self.is_loopback if self.require_keys is None else self.require_keys
