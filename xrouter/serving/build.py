"""From a config to a running server: fleet, policy, ledger, sockets."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from xrouter.catalog import Catalog
from xrouter.config import ConfigError
from xrouter.fleets.live import LiveFleet, NoModelsError
from xrouter.orchestrator import Fleet, Policy
from xrouter.policies.backup import WithBackup
from xrouter.provenance import repo_root
from xrouter.providers.keys import read_env_file
from xrouter.serving.accounts import AsyncLedger, Ledger
from xrouter.serving.app import build_app
from xrouter.serving.config import PolicyConfig, ServeConfig
from xrouter.serving.exchange import Services
from xrouter.serving.metrics import Metrics
from xrouter.serving.offline import OfflineFleet

log = logging.getLogger(__name__)

DATABASE_VARIABLE = "XROUTER_DATABASE_URL"


def read_env_files() -> None:
    """Read ``.env`` of this folder and of the repository; the environment itself comes first."""
    for folder in (Path.cwd(), repo_root()):
        read_env_file(folder / ".env")


def open_ledger(config: ServeConfig) -> Ledger:
    """The ledger of the config, or of ``XROUTER_DATABASE_URL``; SQLite paths are relative to the
    repository."""
    url = os.environ.get(DATABASE_VARIABLE) or config.database
    prefix = "sqlite:///"
    if url.startswith(prefix) and not url.startswith(prefix + "/"):
        url = f"{prefix}{repo_root() / url.removeprefix(prefix)}"
    return Ledger(url)


def build_services(config: ServeConfig, catalog: Catalog) -> Services:
    """Everything but the policy. Raises ValueError for a config that cannot be served."""
    fleet = build_fleet(config, catalog)
    if not config.is_loopback:
        log.warning("serving plain HTTP on %s: put TLS in front of it", config.host)
    ledger = open_ledger(config)
    if config.keys_required and not any(k.revoked is None for k in ledger.list_keys()):
        raise ConfigError(
            f"host={config.host}: API keys are demanded here and there is none; "
            "run: xrouter keys create --name me"
        )
    pools = profile_pools(config, catalog, fleet.catalog)
    return Services(config, fleet.catalog, pools, fleet, AsyncLedger(ledger), Metrics())


def profile_pools(
    config: ServeConfig, everyone: Catalog, usable: Catalog
) -> dict[str, tuple[str, ...]]:
    """The usable models of each profile's pool. Raises :class:`ConfigError` for a pool that does
    not exist or has nobody who can be called, and for other names of the config."""
    for name in ("best_single", "backup"):
        if (model := getattr(config, name)) is not None and model not in everyone:
            raise ConfigError(f"{name}={model!r}: not in the catalog; xrouter models lists it")
    pools = {}
    for profile, settings in config.profiles.items():
        wanted = settings.pool or config.pool
        try:
            pools[profile] = tuple(m for m in everyone.pool(wanted) if m in usable)
        except ValueError as error:
            raise ConfigError(f"profiles.{profile}.pool: {error}") from None
        if not pools[profile]:
            raise ConfigError(f"profiles.{profile}: no model of pool {wanted!r} can be called here")
    return pools


def build_fleet(config: ServeConfig, catalog: Catalog) -> Fleet:
    """The live fleet where keys allow it, else the simulated one, as the config asks."""
    if config.fleet != "simulated":
        try:
            return LiveFleet(catalog, config.live)
        except NoModelsError as error:
            if config.fleet == "live":
                raise
            log.warning("%s; answers are SIMULATED", error)
    from xrouter.fleets.simulated import SimulatedFleet

    return OfflineFleet(SimulatedFleet(catalog, seed=config.simulated_seed))


def build_policy(config: PolicyConfig, catalog: Catalog) -> Policy:
    """The router policy. Raises ValueError or FileNotFoundError naming what is missing."""
    if config.kind == "chat":
        from xrouter.policies.chat import ChatPolicy

        key = os.environ.get(config.api_key_env) if config.api_key_env else None
        if config.api_key_env and not key:
            raise ConfigError(f"policy.api_key_env={config.api_key_env}: the variable is not set")
        return ChatPolicy(
            config.model,
            catalog,
            api_base=config.api_base,
            api_key=key or ("none" if config.api_base else None),
            temperature=config.temperature,
            timeout_s=config.timeout_s,
        )
    if config.kind == "baseline":
        from xrouter.policies.baselines import make_policy

        return make_policy(config.name)
    from xrouter.policies.local import load_policy

    return load_policy(_in_repository(config.checkpoint), threaded=True)


def _in_repository(path: str) -> Path:
    return repo_root() / path  # an absolute path stays what it is


def policy_config(text: str, base: PolicyConfig) -> PolicyConfig:
    """``--policy``: ``chat:<model>[@<api_base>]``, a run or checkpoint folder, or a baseline."""
    if text.startswith("chat:"):
        model, _, api_base = text.removeprefix("chat:").partition("@")
        changes = {"kind": "chat", "model": model, "api_base": api_base or base.api_base}
    elif Path(text).is_dir() or "/" in text:
        changes = {"kind": "local", "checkpoint": str(Path(text).resolve())}
    else:
        changes = {"kind": "baseline", "name": text}
    return base.model_copy(update=changes)


def make_server(config: ServeConfig) -> DrainingServer:
    """Build everything, and return the server, not yet running."""
    catalog = Catalog.load(_in_repository(config.catalog))
    policy = WithBackup(build_policy(config.policy, catalog), config.backup)
    services = build_services(config, catalog)
    app = build_app(services, policy)
    return DrainingServer(app, config)


class DrainingServer(uvicorn.Server):
    """A server that, told to stop, says so at ``/health/ready`` and lets requests finish for up
    to ``drain_s``; what is left then is cancelled, and billed for what it consumed."""

    def __init__(self, app: FastAPI, config: ServeConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=config.host,
                port=config.port,
                log_level="warning",
                access_log=False,
                server_header=False,
                backlog=4096,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=max(1, round(config.drain_s)),
            )
        )
        self.app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.app.state.server.draining = True
        log.warning("%s: draining", signal.Signals(sig).name)
        super().handle_exit(sig, frame)
