"""Small generators for domains that reasoning-gym lacks: tables, science, and running a program.

Each generator takes a seeded ``random.Random`` and a level (0 easy, 1 medium, 2 hard) and returns
a :class:`Draft`. Gold answers are computed here, never typed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

BANDS = ("easy", "medium", "hard")


@dataclass(frozen=True, slots=True)
class Draft:
    """A question and its answer before it becomes a task."""

    query: str
    gold: str
    verifier: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


Generator = Callable[[Random, int], Draft]
#: index -> an instance, or None where this one is unsuitable or there are no more.
Draw = Callable[[int], Draft | None]


@dataclass(frozen=True, slots=True)
class Cell:
    """One generator at one level: the unit over which tasks are balanced. ``open`` takes a seed."""

    domain: str
    source: str
    difficulty: float
    open: Callable[[int], Draw]

    @property
    def band(self) -> str:
        return band_of(self.difficulty)


def band_of(difficulty: float) -> str:
    """``easy`` below 1/3, ``medium`` below 2/3, else ``hard``."""
    return BANDS[min(2, int(3 * difficulty))]


# --- tables ------------------------------------------------------------------------------------

_NAMES = [
    "Ada",
    "Ben",
    "Cora",
    "Dan",
    "Eva",
    "Finn",
    "Gina",
    "Hugo",
    "Iris",
    "Jack",
    "Kira",
    "Leo",
    "Mona",
    "Ned",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tina",
    "Umar",
    "Vera",
    "Will",
    "Yara",
    "Zoe",
]
_CITIES = [
    "Oslo",
    "Lima",
    "Rome",
    "Cairo",
    "Delhi",
    "Paris",
    "Quito",
    "Seoul",
    "Tunis",
    "Accra",
    "Berlin",
    "Dublin",
]
_SUBJECTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("name", "city", ("age", "score", "visits")),
    ("product", "color", ("price", "stock", "sold")),
    ("team", "city", ("wins", "losses", "points")),
)
_KEYS = {
    "name": _NAMES,
    "product": [
        "lamp",
        "desk",
        "chair",
        "vase",
        "clock",
        "mug",
        "bowl",
        "rug",
        "sofa",
        "shelf",
        "fork",
        "plate",
        "bench",
        "stool",
        "tray",
        "jar",
        "frame",
        "basket",
        "kettle",
        "mirror",
    ],
    "team": [
        "Lions",
        "Bears",
        "Hawks",
        "Wolves",
        "Eagles",
        "Tigers",
        "Sharks",
        "Foxes",
        "Bulls",
        "Rams",
        "Crows",
        "Otters",
        "Lynx",
        "Moose",
        "Cobras",
        "Ravens",
    ],
}
_GROUPS = {"city": _CITIES, "color": ["red", "blue", "green", "black", "white", "gray"]}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a key, a group and three integer columns."""

    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def column(self, name: str) -> list[Any]:
        return [row[self.header.index(name)] for row in self.rows]

    @property
    def numbers(self) -> tuple[str, ...]:
        return self.header[2:]

    def text(self, style: str) -> str:
        """CSV, or the bare markdown rows."""
        if style == "csv":
            return "\n".join(",".join(map(str, line)) for line in (self.header, *self.rows))
        rule = "|" + "---|" * len(self.header)
        lines = ["| " + " | ".join(map(str, line)) + " |" for line in (self.header, *self.rows)]
        return "\n".join([lines[0], rule, *lines[1:]])


def _table(rng: Random, level: int) -> Table:
    key, group, numbers = rng.choice(_SUBJECTS)
    size = rng.randint(*((3, 4), (5, 6), (7, 9))[level])
    top = (20, 99, 999)[level]
    columns = numbers[: (1, 2, 2)[level]]
    groups = rng.sample(_GROUPS[group], 2 if level < 2 else 3)
    rows = tuple(
        (k, rng.choice(groups), *(rng.randint(1, top) for _ in columns))
        for k in rng.sample(_KEYS[key], size)
    )
    return Table((key, group, *columns), rows)


def _ask(
    rng: Random, table: Table, question: str, gold: object, metadata: Mapping[str, Any] = {}
) -> Draft:
    verifier = "exact" if isinstance(gold, str) else "number"
    query = f"{table.text(rng.choice(('csv', 'markdown')))}\n{question}"
    return Draft(query, str(gold), verifier, metadata)


def table_lookup(rng: Random, level: int) -> Draft:
    """One cell, found by its key."""
    table = _table(rng, level)
    row = rng.choice(table.rows)
    column = rng.choice(table.header[1:])
    value = row[table.header.index(column)]
    return _ask(rng, table, f"Give the {column} of {row[0]}.", value)


def table_extreme(rng: Random, level: int) -> Draft:
    """The key with the largest or smallest value; ties are made impossible."""
    while True:
        table = _table(rng, level)
        column = rng.choice(table.numbers)
        values = table.column(column)
        if len(set(values)) == len(values):
            break
    word, pick = rng.choice((("highest", max), ("lowest", min)))
    gold = table.rows[values.index(pick(values))][0]
    return _ask(rng, table, f"Which {table.header[0]} has the {word} {column}?", gold)


def table_sum(rng: Random, level: int) -> Draft:
    """The total of one column."""
    table = _table(rng, level)
    column = rng.choice(table.numbers)
    return _ask(rng, table, f"What is the total {column}?", sum(table.column(column)))


def table_count(rng: Random, level: int) -> Draft:
    """How many rows pass a filter."""
    table = _table(rng, level)
    column = rng.choice(table.numbers)
    values = table.column(column)
    limit = rng.choice(values)
    question = f"How many rows have {column} above {limit}?"
    return _ask(rng, table, question, sum(v > limit for v in values))


def table_filtered_sum(rng: Random, level: int) -> Draft:
    """The total of one column over the rows of one group."""
    table = _table(rng, level)
    column, group = rng.choice(table.numbers), rng.choice(table.rows)[1]
    gold = sum(
        v
        for v, g in zip(table.column(column), table.column(table.header[1]), strict=True)
        if g == group
    )
    question = f"What is the total {column} where {table.header[1]} is {group}?"
    return _ask(rng, table, question, gold)


def table_change(rng: Random, level: int) -> Draft:
    """The mean of a column, or the percentage by which one row exceeds another."""
    table = _table(rng, level)
    column = rng.choice(table.numbers)
    values = table.column(column)
    if rng.random() < 0.5:
        gold = sum(values) / len(values)
        question = f"What is the mean {column}? Round to 2 decimals."
    else:
        i, j = rng.sample(range(len(values)), 2)
        gold = 100 * (values[j] - values[i]) / values[i]
        a, b = table.rows[i][0], table.rows[j][0]
        question = f"By what percent does the {column} change from {a} to {b}? Round to 2 decimals."
    metadata = {"abs_tol": 0.0051, "rel_tol": 1e-9}
    return _ask(rng, table, question, float(f"{gold:.2f}"), metadata)


# --- science -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Formula:
    """A one-number science question: text with named quantities, their ranges, the solution."""

    text: str
    ranges: Mapping[str, tuple[float, float, float]]
    solve: Callable[..., float]

    def draft(self, rng: Random) -> Draft:
        given = {name: _quantity(rng, *bounds) for name, bounds in self.ranges.items()}
        gold = self.solve(**given)
        shown = {name: f"{value:g}" for name, value in given.items()}
        query = f"{self.text.format(**shown)} Give 3 significant figures."
        return Draft(query, f"{gold:.4g}", "number", {"rel_tol": 0.01})


def _quantity(rng: Random, low: float, high: float, step: float) -> float:
    return round(low + step * rng.randint(0, round((high - low) / step)), 6)


_G = 9.81
_R = 8.314

#: By topic: easy, medium and hard formulas.
FORMULAS: Mapping[str, tuple[tuple[Formula, ...], ...]] = {
    "units": (
        (
            Formula("Convert {x} km to metres.", {"x": (0.5, 90, 0.5)}, lambda x: 1000 * x),
            Formula("Convert {x} minutes to seconds.", {"x": (2, 240, 1)}, lambda x: 60 * x),
            Formula("Convert {x} °C to kelvin.", {"x": (-50, 250, 1)}, lambda x: x + 273.15),
        ),
        (
            Formula("Convert {x} km/h to m/s.", {"x": (10, 300, 1)}, lambda x: x / 3.6),
            Formula("Convert {x} °F to °C.", {"x": (40, 400, 1)}, lambda x: (x - 32) / 1.8),
            Formula("Convert {x} kWh to MJ.", {"x": (2, 150, 1)}, lambda x: 3.6 * x),
        ),
        (
            Formula(
                "A flow is {x} litres per minute. What is it in m³ per day?",
                {"x": (2, 400, 1)},
                lambda x: 1.44 * x,
            ),
            Formula(
                "A density is {x} lb/ft³ (1 lb = 0.45359 kg, 1 ft = 0.3048 m). "
                "What is it in kg/m³?",
                {"x": (10, 200, 1)},
                lambda x: x * 0.45359 / 0.3048**3,
            ),
        ),
    ),
    "physics": (
        (
            Formula(
                "A current of {i} A flows through {r} ohm. What is the voltage in V?",
                {"i": (0.5, 12, 0.5), "r": (2, 90, 1)},
                lambda i, r: i * r,
            ),
            Formula(
                "A force of {f} N acts on {m} kg. What is the acceleration in m/s²?",
                {"f": (5, 300, 5), "m": (2, 50, 1)},
                lambda f, m: f / m,
            ),
        ),
        (
            Formula(
                "A stone falls from rest for {t} s (g = 9.81 m/s²). How far in m?",
                {"t": (1, 12, 0.1)},
                lambda t: _G * t**2 / 2,
            ),
            Formula(
                "A {m} kg car moves at {v} km/h. What is its kinetic energy in kJ?",
                {"m": (600, 2400, 50), "v": (18, 160, 2)},
                lambda m, v: m * (v / 3.6) ** 2 / 2000,
            ),
            Formula(
                "Resistors of {a} and {b} ohm are in parallel. What is the total in ohm?",
                {"a": (2, 90, 1), "b": (3, 120, 1)},
                lambda a, b: a * b / (a + b),
            ),
        ),
        (
            Formula(
                "A ball is thrown at {v} m/s, {a} degrees above level ground (g = 9.81 m/s², no "
                "drag). What is its range in m?",
                {"v": (8, 60, 1), "a": (15, 75, 1)},
                lambda v, a: v**2 * math.sin(math.radians(2 * a)) / _G,
            ),
            Formula(
                "An object stands {d} cm from a converging lens of focal length {f} cm. How far "
                "from the lens is the image in cm?",
                {"d": (45, 200, 1), "f": (5, 40, 1)},
                lambda d, f: d * f / (d - f),
            ),
            Formula(
                "A {m} kg block slides down a {a} degree slope with friction coefficient {u} "
                "(g = 9.81 m/s²). What is its acceleration in m/s²?",
                {"m": (1, 30, 1), "a": (35, 70, 1), "u": (0.05, 0.4, 0.01)},
                lambda m, a, u: _G * (math.sin(math.radians(a)) - u * math.cos(math.radians(a))),
            ),
        ),
    ),
    "chemistry": (
        (
            Formula(
                "A sample of {m} g fills {v} cm³. What is its density in g/cm³?",
                {"m": (5, 400, 1), "v": (2, 60, 1)},
                lambda m, v: m / v,
            ),
            Formula(
                "How many grams are {n} mol of water (18.0 g/mol)?",
                {"n": (0.5, 40, 0.5)},
                lambda n: 18.0 * n,
            ),
        ),
        (
            Formula(
                "{m} g of NaCl (58.44 g/mol) is dissolved to {v} mL. What is the molarity?",
                {"m": (2, 120, 1), "v": (50, 900, 10)},
                lambda m, v: m / 58.44 / (v / 1000),
            ),
            Formula(
                "What is the pH of {c} mmol/L HCl?",
                {"c": (0.1, 90, 0.1)},
                lambda c: -math.log10(c / 1000),
            ),
        ),
        (
            Formula(
                "{m} g of CO₂ (44.01 g/mol) is at {t} °C in {v} L (R = 8.314). What is the "
                "pressure in kPa?",
                {"m": (2, 90, 1), "t": (0, 150, 1), "v": (1, 40, 1)},
                lambda m, t, v: m / 44.01 * _R * (t + 273.15) / v,
            ),
            Formula(
                "A weak acid has pKa {p} and concentration {c} mol/L. What is the pH? "
                "Solve the quadratic.",
                {"p": (2.5, 6, 0.05), "c": (0.01, 0.9, 0.01)},
                lambda p, c: _weak_acid_ph(p, c),
            ),
        ),
    ),
    "decay": (
        (
            Formula(
                "A sample of {m} g has a half-life of {h} days. How many g remain after {h} days?",
                {"m": (2, 400, 2), "h": (2, 60, 1)},
                lambda m, h: m / 2,
            ),
        ),
        (
            Formula(
                "A sample of {m} g has a half-life of {h} days. How many g remain after {t} days?",
                {"m": (20, 400, 5), "h": (3, 30, 1), "t": (5, 60, 1)},
                lambda m, h, t: m * 0.5 ** (t / h),
            ),
        ),
        (
            Formula(
                "{p} % of a radioactive sample is left after {t} days. What is its half-life in "
                "days?",
                {"p": (3, 90, 1), "t": (2, 80, 1)},
                lambda p, t: t * math.log(2) / math.log(100 / p),
            ),
        ),
    ),
}


def _weak_acid_ph(pka: float, concentration: float) -> float:
    ka = 10**-pka
    return -math.log10((-ka + math.sqrt(ka * ka + 4 * ka * concentration)) / 2)


def science(topic: str) -> Generator:
    """A generator for one topic of :data:`FORMULAS`."""
    levels = FORMULAS[topic]
    return lambda rng, level: rng.choice(levels[level]).draft(rng)


# --- running a program -------------------------------------------------------------------------


def program_output(rng: Random, level: int) -> Draft:
    """What a short Python program prints; the same steps are carried out here."""
    shape = rng.choice((_loop_program, _list_program, _string_program))
    lines, gold = shape(rng, level)
    verifier = "number" if gold.lstrip("-").isdigit() else "exact"
    return Draft("What does this print?\n" + "\n".join(lines), gold, verifier)


def _loop_program(rng: Random, level: int) -> tuple[Sequence[str], str]:
    x, factor, modulus = rng.randint(1, 20), rng.randint(2, 9), rng.randint(11, 97)
    steps = rng.randint(*((2, 3), (4, 6), (8, 12))[level])
    lines = [f"x = {x}", f"for i in range({steps}):"]
    branch = level == 2
    if branch:
        lines += ["    if x % 2:", "        x = x + i", "    else:"]
    lines += [f"{'    ' * (2 if branch else 1)}x = (x * {factor} + i) % {modulus}", "print(x)"]
    for i in range(steps):
        x = x + i if branch and x % 2 else (x * factor + i) % modulus
    return lines, str(x)


def _list_program(rng: Random, level: int) -> tuple[Sequence[str], str]:
    size = (4, 6, 8)[level]
    values = [rng.randint(0, 30) for _ in range(size)]
    step, shift = rng.randint(2, 4), rng.randint(1, 9)
    lines = [f"a = {values}"]
    if level == 0:
        return [*lines, f"print(sum(a[:{step}]))"], str(sum(values[:step]))
    picked = [v + shift for v in values if v % step]
    lines.append(f"b = [v + {shift} for v in a if v % {step}]")
    if level == 1:
        return [*lines, "print(sum(b))"], str(sum(picked))
    gold = sum(v * i for i, v in enumerate(sorted(picked)[::-1]))
    return [*lines, "c = sorted(b)[::-1]", "print(sum(v * i for i, v in enumerate(c)))"], str(gold)


def _string_program(rng: Random, level: int) -> tuple[Sequence[str], str]:
    text = "".join(rng.choice("abcdefgh") for _ in range((5, 7, 9)[level]))
    lines = [f"s = '{text}'"]
    if level == 0:
        return [*lines, "print(s[::-1])"], text[::-1]
    cut = rng.randint(2, 4)
    if level == 1:
        return [*lines, f"print(s[{cut}:] + s[:{cut}])"], text[cut:] + text[:cut]
    lines += [f"for i in range({cut}):", "    s = s[::-1][1:] + s[-1]", "print(s)"]
    for _ in range(cut):
        text = text[::-1][1:] + text[-1]
    return lines, text
