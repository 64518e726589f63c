"""Plausible wrong answers: what a model that errs on a task might say instead.

Errors follow the shape of the right answer (a number slips, a list loses an item, a knight turns
knave), so that two models that are wrong can be wrong in the same way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from random import Random

from xrouter.episode import Task


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_OPPOSITES = {"yes": "No", "no": "Yes", "true": "False", "false": "True"}
_VOCABULARIES = (
    _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    _words(
        "father mother son daughter brother sister husband wife uncle aunt nephew niece cousin "
        "grandfather grandmother grandson granddaughter"
    ),
    _words(
        "red blue green black white gray cyan magenta silver gold purple pink orange yellow "
        "indigo brown violet"
    ),
)
_ROLE_QUESTION = re.compile(r"who is (an? \w+) and who is (an? \w+)")
_ROLE = re.compile(r"(\w+) is (an? \w+)")
_INTEGER = re.compile(r"-?\d+")
_DECIMAL = re.compile(r"-?\d+\.\d+")
_HEX = re.compile(r"(-?)0x([0-9a-f]+)")
_FRACTION = re.compile(r"(-?\d+)/(\d+)")


def plausible_errors(task: Task, gold: str, rng: Random) -> Iterator[str]:
    """Wrong answers in a random order; without end, unless the answer is one of few (yes or no,
    a name from the question).

    The caller checks them with the task's verifier: now and then one is right after all.
    """
    if other := _OPPOSITES.get(gold.lower()):
        yield other
        return
    for shape in (*_CLOSED_SHAPES, *_OPEN_SHAPES):
        errors = list(dict.fromkeys(shape(task, gold, rng)))
        if errors:
            rng.shuffle(errors)
            yield from errors
            if shape in _CLOSED_SHAPES:
                return
            break
    yield from _misspellings(gold, rng)


def _roles(task: Task, gold: str, rng: Random) -> Iterator[str]:
    """One or two inhabitants of an island of knights and knaves judged the other way."""
    question = _ROLE_QUESTION.search(task.query)
    people = _ROLE.findall(gold)
    if not question or not people:
        return
    swap = {question.group(1): question.group(2), question.group(2): question.group(1)}
    for first in range(len(people)):
        for second in range(first, len(people)):
            told = [
                (n, swap.get(r, r) if i in (first, second) else r)
                for i, (n, r) in enumerate(people)
            ]
            yield ", and ".join(f"{name} is {role}" for name, role in told)


def _grids(task: Task, gold: str, rng: Random) -> Iterator[str]:
    """One cell changed, the rows reversed, or the grid transposed."""
    as_json = gold.startswith("[[")
    if not as_json and not re.fullmatch(r"[\d\s]+\n[\d\s]+", gold):
        return
    grid = json.loads(gold) if as_json else [line.split() for line in gold.splitlines()]
    if not grid or not grid[0]:
        return
    values = sorted({cell for row in grid for cell in row}) or [0]
    spare = [0, 1] if as_json else values
    for _ in range(6):
        changed = [list(row) for row in grid]
        i, j = rng.randrange(len(grid)), rng.randrange(len(grid[0]))
        changed[i][j] = rng.choice([v for v in spare if v != changed[i][j]] or [spare[0]])
        yield _grid_text(changed, as_json)
    yield _grid_text(grid[::-1], as_json)
    yield _grid_text([list(column) for column in zip(*grid, strict=False)], as_json)


def _grid_text(grid: Sequence[Sequence[object]], as_json: bool) -> str:
    if as_json:
        return json.dumps(grid, separators=(",", ":"))
    return "\n".join(" ".join(map(str, row)) for row in grid)


def _lists(task: Task, gold: str, rng: Random) -> Iterator[str]:
    """Two neighbours swapped, an item lost, the whole reversed."""
    bracketed = gold.startswith("[") and gold.endswith("]")
    items = (gold[1:-1] if bracketed else gold).split(", ")
    if len(items) < 2:
        if bracketed:
            yield from (["['0']"] if gold == "[]" else ["[]"])
        return
    variants = [
        [*items[:i], items[i + 1], items[i], *items[i + 2 :]] for i in range(len(items) - 1)
    ]
    variants += [items[:i] + items[i + 1 :] for i in range(len(items))]
    for variant in [*variants, items[::-1]]:
        text = ", ".join(variant)
        yield f"[{text}]" if bracketed else text


def _fractions(task: Task, gold: str, rng: Random) -> Iterator[str]:
    if match := _FRACTION.fullmatch(gold):
        top, bottom = int(match.group(1)), int(match.group(2))
        for a, b in ((1, 0), (-1, 0), (0, 1), (2, 1), (1, 2), (3, 0)):
            yield f"{top + a}/{max(1, bottom + b)}"
        if top > 0:
            yield f"{bottom}/{top}"


def _hexadecimals(task: Task, gold: str, rng: Random) -> Iterator[str]:
    if match := _HEX.fullmatch(gold):
        value = int(match.group(2), 16) * (-1 if match.group(1) else 1)
        for wrong in (value + 1, value - 1, -value, value ^ 0x10, value + 0x100, value * 2):
            yield hex(wrong)


def _integers(task: Task, gold: str, rng: Random) -> Iterator[str]:
    """Off by one, a slip in one digit, a lost sign, a carry forgotten."""
    if not _INTEGER.fullmatch(gold):
        return
    value = int(gold)
    slips = [value + step for step in (1, -1, 2, -2, 3, -3, 10, -10)] + [value * 2, -value]
    slips += [value + rng.choice((-1, 1)) * 10**place for place in range(1, len(gold.lstrip("-")))]
    yield from (str(slip) for slip in slips if slip != value and (value <= 0 or slip >= 0))


def _decimals(task: Task, gold: str, rng: Random) -> Iterator[str]:
    if _DECIMAL.fullmatch(gold):
        value, places = float(gold), len(gold.partition(".")[2])
        for factor in (0.1, 10.0, 0.5, 2.0, 1.1, 0.9, 1.05, 3.6, -1.0):
            yield f"{value * factor:.{places}f}"


def _vocabulary(task: Task, gold: str, rng: Random) -> Iterator[str]:
    """Another word of the same kind, those of the question before all others."""
    words = set(re.findall(r"[A-Za-z]+", task.query))
    for kind in _VOCABULARIES:
        if gold in kind:
            mentioned = [w for w in kind if w != gold and w in words]
            yield from mentioned if len(mentioned) >= 3 else [w for w in kind if w != gold]
            return


def _names(task: Task, gold: str, rng: Random) -> Iterator[str]:
    """Another name of the question."""
    if not re.fullmatch(r"[A-Z][\w-]+", gold):
        return
    for word in dict.fromkeys(re.findall(r"(?:^|[|,\n.]) *([A-Z][\w-]+)", task.query)):
        if word != gold and word not in {"Who", "Give", "Which", "What", "How"}:
            yield word


def _keys(task: Task, gold: str, rng: Random) -> Iterator[str]:
    """Another row key of the table that was asked about."""
    rows = re.findall(r"^(?:\| )?([A-Za-z]+)(?:,| \|)", task.query, flags=re.MULTILINE)
    if gold in rows:
        yield from (row for row in dict.fromkeys(rows[1:]) if row != gold)


def _sentences(task: Task, gold: str, rng: Random) -> Iterator[str]:
    """Two words swapped, a word misspelt, the last word lost."""
    words = gold.split(" ")
    if len(words) < 2:
        return
    yield " ".join(words[:-1])
    for i in range(min(4, len(words) - 1)):
        yield " ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]])
        yield " ".join([*words[:i], next(_misspellings(words[i], rng)), *words[i + 1 :]])


def _misspellings(gold: str, rng: Random) -> Iterator[str]:
    """Neighbouring characters swapped, one lost, one doubled, one changed; without end."""
    letters = "0123456789" if gold.isdigit() else "abcdefghijklmnopqrstuvwxyz"
    letters = letters.upper() if gold.isupper() else letters
    while True:
        i = rng.randrange(max(1, len(gold)))
        kind = rng.randrange(4)
        if kind == 0 and i + 1 < len(gold):
            yield gold[:i] + gold[i + 1] + gold[i] + gold[i + 2 :]
        elif kind == 1 and len(gold) > 1:
            yield gold[:i] + gold[i + 1 :]
        elif kind == 2:
            yield gold[:i] + gold[i : i + 1] * 2 + gold[i + 1 :]
        else:
            yield gold[:i] + rng.choice(letters) + gold[i + 1 :]


_Shape = Callable[[Task, str, Random], Iterator[str]]
_CLOSED_SHAPES: tuple[_Shape, ...] = (_roles, _vocabulary, _keys, _names)
_OPEN_SHAPES: tuple[_Shape, ...] = (
    _grids,
    _lists,
    _fractions,
    _hexadecimals,
    _integers,
    _decimals,
    _sentences,
)
