"""Procedural tasks for the simulated world: Guru's six domains, and small talk.

Most tasks come from reasoning-gym's generators and are judged by its scorers; tables, science and
program output come from :mod:`xrouter.data.procedural`, chat from :mod:`xrouter.data.chat`.

Difficulty is assigned per generator and level, in [0, 1]. It is a scale for the simulated world
and the curriculum, not a measurement: see :mod:`xrouter.fleets.simulated` for what it means there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from xrouter.data import procedural
from xrouter.data.chat import CHAT_KINDS, chat_drafts, chat_reply
from xrouter.data.gym import GYMS
from xrouter.data.procedural import BANDS, Cell, Draft, Draw
from xrouter.episode import DOMAINS, Task

__all__ = ["BANDS", "DEFAULT_SIZES", "build_tasks", "chat_reply"]

DEFAULT_SIZES: Mapping[str, int] = {"train": 1200, "validation": 300, "test": 600}
#: Test is drawn first, so that it does not change with the size of the other splits.
_SPLIT_ORDER = ("test", "validation", "train")
#: Chat is one kind of task, not a subject: it gets half a domain's share.
_DOMAIN_WEIGHT = {"chat": 0.5}
MAX_QUERY_CHARS = 420
_MAX_MISSES = 300


def build_tasks(
    seed: int = 0,
    sizes: Mapping[str, int] = DEFAULT_SIZES,
    domains: Sequence[str] | None = None,
) -> dict[str, list[Task]]:
    """Tasks per split, balanced over domains and difficulty bands; the same for the same seed.

    No query occurs twice, within a split or across splits. Ids depend on the query alone. Raises
    ValueError for unknown splits or domains, and where a domain has too few distinct tasks.
    """
    wanted = _check(sizes, domains)
    cells = [cell for cell in all_cells() if cell.domain in wanted]
    streams = {id(cell): _instances(cell, seed) for cell in cells}
    seen: set[str] = set()
    splits: dict[str, list[Task]] = {}
    for split in _SPLIT_ORDER:
        if split not in sizes:
            continue
        tasks: list[Task] = []
        for domain, count in _shares(sizes[split], wanted).items():
            own = [cell for cell in cells if cell.domain == domain]
            tasks += _draw_balanced(own, count, split, streams, seen)
        Random(f"{seed}/{split}").shuffle(tasks)
        splits[split] = tasks
    return {split: splits[split] for split in sizes}


def _check(sizes: Mapping[str, int], domains: Sequence[str] | None) -> tuple[str, ...]:
    if unknown := sorted(set(sizes) - set(_SPLIT_ORDER)):
        raise ValueError(f"sizes: unknown splits {unknown}; use some of {sorted(_SPLIT_ORDER)}")
    for split, size in sizes.items():
        if size < 0:
            raise ValueError(f"sizes[{split!r}]={size}; must be >= 0")
    wanted = tuple(dict.fromkeys(DOMAINS if domains is None else domains))
    if not wanted or set(wanted) - set(DOMAINS):
        raise ValueError(f"domains={list(domains or ())}; use one or more of {list(DOMAINS)}")
    return wanted


def _shares(total: int, domains: Sequence[str]) -> dict[str, int]:
    """Split ``total`` over domains by weight, largest remainders first."""
    weights = {d: _DOMAIN_WEIGHT.get(d, 1.0) for d in domains}
    exact = {d: total * w / sum(weights.values()) for d, w in weights.items()}
    shares = {d: int(x) for d, x in exact.items()}
    left = total - sum(shares.values())
    for domain in sorted(domains, key=lambda d: shares[d] - exact[d])[:left]:
        shares[domain] += 1
    return shares


def _draw_balanced(
    cells: Sequence[Cell],
    count: int,
    split: str,
    streams: Mapping[int, Iterator[Draft]],
    seen: set[str],
) -> list[Task]:
    """``count`` unseen tasks of one domain, turn by turn from its bands and their cells."""
    queues = {band: [c for c in cells if c.band == band] for band in BANDS}
    tasks: list[Task] = []
    while len(tasks) < count:
        before = len(tasks)
        for queue in queues.values():
            while queue and len(tasks) < count:
                cell = queue.pop(0)
                if draft := _unseen(streams[id(cell)], seen):
                    tasks.append(_task(cell, draft, split))
                    queue.append(cell)
                    break
        if len(tasks) == before:
            raise ValueError(
                f"domain {cells[0].domain!r} has only {len(tasks)} more distinct tasks, "
                f"sizes[{split!r}] needs {count} of them; lower sizes or leave the domain out"
            )
    return tasks


def _unseen(stream: Iterator[Draft], seen: set[str]) -> Draft | None:
    for _ in range(_MAX_MISSES):
        draft = next(stream, None)
        if draft is None:
            return None
        if draft.query not in seen:
            seen.add(draft.query)
            return draft
    return None


def _instances(cell: Cell, seed: int) -> Iterator[Draft]:
    draw = cell.open(_stable_seed(seed, cell.source, cell.difficulty))
    misses = index = 0
    while misses < _MAX_MISSES:
        draft = draw(index)
        index += 1
        if draft is None or len(draft.query) > MAX_QUERY_CHARS:
            misses += 1
            continue
        misses = 0
        yield draft


def _stable_seed(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=4).digest(), "big") >> 1


def _task(cell: Cell, draft: Draft, split: str) -> Task:
    digest = hashlib.blake2b(draft.query.encode(), digest_size=5).hexdigest()
    return Task(
        id=f"{cell.domain}/{cell.source.partition(':')[2]}/{digest}",
        query=draft.query,
        domain=cell.domain,
        gold=draft.gold,
        verifier=draft.verifier,
        difficulty=cell.difficulty,
        band=cell.band,
        split=split,
        source=cell.source,
        metadata=draft.metadata,
    )


# --- generators of our own ---------------------------------------------------------------------


def _own(
    domain: str, name: str, generator: procedural.Generator, difficulties: Sequence[float]
) -> list[Cell]:
    def opener(level: int) -> Callable[[int], Draw]:
        return lambda seed: lambda index: generator(Random(f"{seed}/{index}"), level)

    return [
        Cell(domain, f"xrouter:{name}", difficulty, opener(level))
        for level, difficulty in enumerate(difficulties)
    ]


def _chat_cell(kind: str) -> Cell:
    def opener(seed: int) -> Draw:
        drafts = chat_drafts(kind)
        Random(seed).shuffle(drafts)
        return lambda index: drafts[index] if index < len(drafts) else None

    return Cell("chat", f"xrouter:chat_{kind}", 0.0, opener)


def all_cells() -> list[Cell]:
    """Every generator at every level."""
    cells = [cell for gym in GYMS for cell in gym.cells()]
    for name, generator, difficulties in (
        ("table_lookup", procedural.table_lookup, (0.05, 0.15, 0.35)),
        ("table_extreme", procedural.table_extreme, (0.10, 0.35, 0.60)),
        ("table_count", procedural.table_count, (0.20, 0.45, 0.70)),
        ("table_sum", procedural.table_sum, (0.25, 0.50, 0.75)),
        ("table_filtered_sum", procedural.table_filtered_sum, (0.35, 0.60, 0.85)),
        ("table_change", procedural.table_change, (0.45, 0.70, 0.95)),
    ):
        cells += _own("table", name, generator, difficulties)
    for topic, difficulties in (
        ("units", (0.10, 0.40, 0.70)),
        ("physics", (0.20, 0.50, 0.85)),
        ("chemistry", (0.25, 0.60, 0.95)),
        ("decay", (0.15, 0.55, 0.80)),
    ):
        cells += _own("stem", topic, procedural.science(topic), difficulties)
    cells += _own("simulation", "program", procedural.program_output, (0.20, 0.50, 0.80))
    cells += [_chat_cell(kind) for kind in CHAT_KINDS]
    return cells
