"""What a run folder says about its own training: config, dial, and the tasks it has seen."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from xrouter.data.splits import split_tasks
from xrouter.evaluation.runner import default_orchestrator
from xrouter.orchestrator import Orchestrator

if TYPE_CHECKING:
    from xrouter.fleets.recorded import RecordedFleet
    from xrouter.orchestrator import Fleet, Policy

DEFAULT_COST_WEIGHT = 0.1


@dataclass(frozen=True)
class Run:
    """A trained router's folder. Everything but ``policy`` is optional in it."""

    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such run folder")

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The run's ``config.yaml``, or an empty dict."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            return {}
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError(f"{path}: expected a mapping at the top")
        return raw

    @property
    def dial(self) -> tuple[float, ...]:
        """The cost weights it was trained on, ascending; empty where unknown."""
        values = (self.config.get("dial") or {}).get("values") or ()
        return tuple(sorted({float(v) for v in values}))

    @property
    def cost_weight(self) -> float:
        """Where the dial stands when nobody says."""
        shown = (self.config.get("dial") or {}).get("evaluate") or ()
        return float(shown[-1]) if shown else DEFAULT_COST_WEIGHT

    def policy(self) -> Policy:
        """The trained router (imports torch)."""
        from xrouter.policies.local import load_policy

        policy = load_policy(self.folder)
        policy.name = self.name
        return policy

    def orchestrator(self, fleet: Fleet) -> Orchestrator:
        """The turn loop as the run was trained with it: mode and number of turns."""
        plain = default_orchestrator(fleet)
        turns = int(self.config.get("max_turns") or plain.limits.max_turns)
        mode = self.config.get("mode") or plain.mode
        return Orchestrator(fleet, mode=mode, limits=replace(plain.limits, max_turns=turns))

    def seen(self, fleet: RecordedFleet) -> frozenset[str] | None:
        """Queries of ``fleet`` that the router was trained on; None where that is unknown.

        ``splits.json`` (split name -> task ids) decides; else the split is repeated as the
        config says, if the run's ``summary.json`` shows that it used this very recording.
        """
        if (path := self.folder / "splits.json").is_file():
            splits = json.loads(path.read_text(encoding="utf-8"))
            return frozenset(splits.get("train", ())) & frozenset(fleet.query_ids)
        if self.config.get("world") != "recorded":
            return frozenset() if self.config.get("world") else None
        if self._data_hash() != fleet.data_hash:
            return self._seen_elsewhere(fleet)
        return self._train_ids(fleet)

    def _train_ids(self, fleet: RecordedFleet) -> frozenset[str]:
        data = self.config.get("data") or {}
        shares = {k: float(data[k]) for k in ("train", "validation", "test") if data.get(k)}
        parts = split_tasks(fleet.tasks(), int(data.get("seed", 0)), shares)
        return frozenset(t.id for t in parts["train"])

    def _data_hash(self) -> str | None:
        path = self.folder / "summary.json"
        if not path.is_file():
            return None
        return json.loads(path.read_text(encoding="utf-8")).get("data_hash")

    def _seen_elsewhere(self, fleet: RecordedFleet) -> frozenset[str] | None:
        from xrouter.fleets.recorded import RecordedFleet

        source = Path(str(self.config.get("recorded") or ""))
        try:
            other = RecordedFleet(source, allow_missing=True)
        except (OSError, ValueError):
            return None
        return self._train_ids(other) & frozenset(fleet.query_ids)
