"""Which reasoning-gym generators are used, at which levels, and how their questions are cut.

Boilerplate is shortened so that a small router reads what matters. Left out on purpose:
generators whose scorer evaluates the answer (see :mod:`xrouter.verifiers`), those whose output
depends on Python's hash seed (``isomorphic_strings``), and those that print (``bf``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from xrouter.data.procedural import Cell, Draft, Draw

#: Instances per generator and level; some generators prepare all of them when opened.
GYM_SIZE = 1 << 14


@dataclass(frozen=True, slots=True)
class Gym:
    """A reasoning-gym data set: (difficulty, config) per level, how its question is shortened,
    and which metadata its scorer reads (the rest is dropped)."""

    domain: str
    dataset: str
    levels: tuple[tuple[float, Mapping[str, Any]], ...]
    shorten: Callable[[str], str] = str.strip
    keep: tuple[str, ...] = ()
    verifier: str = "reasoning_gym"
    accept: Callable[[Mapping[str, Any]], bool] = lambda entry: True

    def cells(self) -> list[Cell]:
        source = f"reasoning-gym:{self.dataset}"
        return [
            Cell(self.domain, source, difficulty, self._opener(config))
            for difficulty, config in self.levels
        ]

    def _opener(self, config: Mapping[str, Any]) -> Callable[[int], Draw]:
        def opener(seed: int) -> Draw:
            import reasoning_gym

            data = reasoning_gym.create_dataset(self.dataset, seed=seed, size=GYM_SIZE, **config)
            return lambda index: self._draft(data[index]) if index < GYM_SIZE else None

        return opener

    def _draft(self, entry: Mapping[str, Any]) -> Draft | None:
        if entry["answer"] is None or not self.accept(entry):
            return None
        gold = str(entry["answer"])
        query = _trim(self.shorten(entry["question"]))
        if self.verifier != "reasoning_gym":
            return Draft(query, gold, self.verifier)
        kept = {key: entry["metadata"][key] for key in self.keep}
        plain = {"question": entry["question"], "answer": gold, "metadata": kept}
        metadata = {"dataset": self.dataset, "strict": True, "entry": json.loads(json.dumps(plain))}
        return Draft(query, gold, "reasoning_gym", metadata)


_BOILERPLATE = re.compile(
    r"\s*(?:(?:Give|Provide|Reply|Respond|Answer|Return)\s+(?:only|with\s+(?:just|only))\b[^.\n]*\."
    r"|Give the result as your final answer\.|Do not include units\.)",
)


def _trim(question: str) -> str:
    return _BOILERPLATE.sub("", question).strip()


def _after(marker: str) -> Callable[[str], str]:
    """Keep what follows ``marker``, with a capital at its start."""

    def shorten(question: str) -> str:
        text = question.rpartition(marker)[2].strip()
        return text[:1].upper() + text[1:]

    return shorten


def _base_conversion(question: str) -> str:
    return f"{_after('Now, ')(question)}. Use lowercase letters for digits above 9."


def _binary_alternation(question: str) -> str:
    bits = question.split()[-1]
    return (
        f"Fewest swaps of two characters to make {bits} alternate (like 0101), or -1 if it cannot."
    )


def _sorting(question: str) -> str:
    text = _after("Now, ")(question)
    return text.replace(" and return them as a comma-separated list", "")


def _knights(question: str) -> str:
    text = question.replace("A very special island is inhabited only by", "An island has only")
    return re.sub(r"\s*\(Format your answer.*\)\s*$", " Say it of each in turn.", text)


def _sudoku(question: str) -> str:
    grid = "\n".join(re.findall(r"^[\d_](?: [\d_]){3}$", question, flags=re.MULTILINE))
    return f"Fill in this 4x4 sudoku (1-4 once in each row, column and 2x2 box):\n{grid}"


def _courses(question: str) -> str:
    pairs = re.search(r"\[\(.*\)\]", question)
    return (
        f"In these pairs, (a, b) means course b comes before course a: {pairs and pairs.group()}. "
        "Can all courses be finished? True or False."
    )


def _game_of_life(question: str) -> str:
    steps = re.search(r"after (\d+) steps?", question)
    grid = question.partition("\n\n")[2].strip().rstrip(".")
    return (
        f"Game of Life with wrapping edges: what is this board after {steps and steps.group(1)} "
        f"step(s)? Reply as JSON rows.\n{grid}"
    )


def _cube(question: str) -> str:
    return re.sub(r"\n+", " ", question.replace(" side\n- a ", " side, a ").replace("- a ", "a "))


def _no_in_laws(entry: Mapping[str, Any]) -> bool:
    """reasoning-gym 0.1.25 has in-law relations the wrong way round ("What is Sarah to her
    husband's mother?": "mother-in-law"), so those are left out."""
    return "in-law" not in entry["answer"]


_WEEKDAYS = ["weekday_offset", "weekday_of_date", "weekday_of_date_from_first_date"]

GYMS: tuple[Gym, ...] = (
    Gym(
        "math",
        "chain_sum",
        (
            (0.05, {"min_terms": 2, "max_terms": 3, "max_digits": 2}),
            (0.40, {"min_terms": 4, "max_terms": 5, "min_digits": 3, "max_digits": 3}),
            (0.70, {"min_terms": 7, "max_terms": 8, "min_digits": 4, "max_digits": 5}),
        ),
        _after("problem:"),
    ),
    Gym(
        "math",
        "products",
        (
            (0.10, {"max_digits": 2}),
            (0.50, {"min_digits": 3, "max_digits": 3}),
            (0.85, {"min_digits": 4, "max_digits": 5}),
        ),
        _after("Solve the following "),
    ),
    Gym(
        "math",
        "simple_equations",
        (
            (0.15, {"max_terms": 2, "max_value": 12}),
            (0.45, {"min_terms": 3, "max_terms": 4}),
            (0.75, {"min_terms": 6, "max_terms": 7}),
        ),
    ),
    Gym(
        "math",
        "gcd",
        (
            (0.20, {"max_value": 60}),
            (0.50, {"min_numbers": 3, "max_numbers": 3, "min_value": 100}),
            (0.75, {"min_numbers": 4, "max_numbers": 4, "min_value": 1000, "max_value": 9999}),
        ),
    ),
    Gym(
        "math",
        "lcm",
        (
            (0.25, {"max_value": 20}),
            (0.55, {"min_value": 30, "max_value": 99}),
            (0.80, {"min_numbers": 3, "max_numbers": 3, "min_value": 50, "max_value": 200}),
        ),
    ),
    Gym(
        "math",
        "number_sequence",
        (
            (0.20, {"max_complexity": 1, "max_value": 20}),
            (0.60, {"max_complexity": 2}),
            (0.90, {"max_complexity": 3, "min_terms": 6}),
        ),
    ),
    Gym(
        "math",
        "fraction_simplification",
        (
            (0.30, {"max_value": 30, "max_factor": 9, "styles": ("plain",)}),
            (0.55, {"min_value": 30, "max_value": 300, "styles": ("plain",)}),
            (0.75, {"min_value": 300, "min_factor": 20, "styles": ("plain",)}),
        ),
        keep=("numerator", "denominator", "simplified_numerator", "simplified_denominator"),
    ),
    Gym(
        "math",
        "count_primes",
        ((0.30, {"max_n": 60}), (0.65, {"max_n": 500}), (0.95, {"max_n": 9000})),
    ),
    Gym("math", "gsm_symbolic", ((0.40, {}),)),
    Gym(
        "code",
        "spell_backward",
        (
            (0.05, {"max_word_len": 5}),
            (0.25, {"min_word_len": 6, "max_word_len": 7}),
            (0.45, {"min_word_len": 9}),
        ),
    ),
    Gym(
        "code",
        "letter_counting",
        (
            (0.10, {"min_words": 4, "max_words": 6}),
            (0.40, {"min_words": 10, "max_words": 14}),
            (0.70, {"min_words": 30, "max_words": 36}),
        ),
    ),
    Gym(
        "code",
        "base_conversion",
        (
            (0.20, {"max_value": 60}),
            (0.55, {"min_value": 200, "max_value": 2000}),
            (0.80, {"min_value": 20000, "max_value": 900000}),
        ),
        _base_conversion,
    ),
    Gym(
        "code",
        "count_bits",
        (
            (0.25, {"max_n": 255}),
            (0.55, {"min_n": 4096, "max_n": 65535}),
            (0.85, {"min_n": 1 << 27}),
        ),
    ),
    Gym(
        "code",
        "word_sorting",
        (
            (0.25, {"max_words": 4}),
            (0.50, {"min_words": 6, "max_words": 7}),
            (0.75, {"min_words": 11, "max_words": 14}),
        ),
        _sorting,
        keep=("sorted_words",),
    ),
    Gym(
        "code",
        "caesar_cipher",
        (
            (0.45, {"max_words": 4, "max_rotation": 5}),
            (0.75, {"min_words": 5, "max_words": 7}),
            (0.95, {"min_words": 10, "max_words": 14}),
        ),
    ),
    Gym(
        "code",
        "binary_alternation",
        (
            (0.35, {"min_n": 6, "max_n": 9}),
            (0.65, {"min_n": 12, "max_n": 16}),
            (0.90, {"min_n": 24, "max_n": 32}),
        ),
        _binary_alternation,
    ),
    Gym(
        "code",
        "bitwise_arithmetic",
        ((0.40, {"difficulty": 1}), (0.70, {"difficulty": 2}), (0.95, {"difficulty": 4})),
        lambda q: "Evaluate with signed integers, answer in hex: " + q.strip().splitlines()[-1],
        verifier="exact",
    ),
    Gym(
        "logic", "syllogism", ((0.25, {}),), lambda q: q.replace("(Answer Yes or No)", "Yes or No?")
    ),
    Gym("logic", "aiw", ((0.30, {"task_type_weights": [1.0, 0.0, 0.0]}),)),
    Gym(
        "logic",
        "family_relationships",
        (
            (0.20, {"max_family_size": 5}),
            (0.50, {"min_family_size": 6, "max_family_size": 8}),
            (0.70, {"min_family_size": 9, "max_family_size": 11}),
        ),
        accept=_no_in_laws,
    ),
    Gym(
        "logic",
        "knights_knaves",
        ((0.55, {"n_people": 2}), (0.75, {"n_people": 3}), (0.95, {"n_people": 4})),
        _knights,
    ),
    Gym(
        "logic",
        "needle_haystack",
        (
            (0.05, {"min_num_statements": 3, "max_num_statements": 5}),
            (0.20, {"min_num_statements": 7, "max_num_statements": 9}),
        ),
    ),
    Gym(
        "logic",
        "mini_sudoku",
        (
            (0.40, {"min_empty": 4, "max_empty": 6}),
            (0.65, {"min_empty": 8, "max_empty": 9}),
            (0.85, {"min_empty": 11, "max_empty": 12}),
        ),
        _sudoku,
        keep=("solution",),
    ),
    Gym(
        "logic",
        "course_schedule",
        (
            (0.30, {"min_num_courses": 3, "max_num_courses": 4, "max_cycle_length": 3}),
            (0.60, {"min_num_courses": 7, "max_num_courses": 9}),
            (0.80, {"min_num_courses": 12, "max_num_courses": 14}),
        ),
        _courses,
    ),
    Gym("logic", "calendar_arithmetic", ((0.45, {"tasks": _WEEKDAYS}),), keep=("task",)),
    Gym(
        "logic",
        "maze",
        (
            (0.60, {"min_dist": 3, "max_dist": 5, "min_grid_size": 5, "max_grid_size": 6}),
            (0.90, {"min_dist": 8, "max_dist": 12, "min_grid_size": 8, "max_grid_size": 9}),
        ),
    ),
    Gym(
        "simulation",
        "rotate_matrix",
        (
            (0.20, {"max_n": 3, "min_rotations": 1, "max_rotations": 1}),
            (0.50, {"min_n": 3, "max_n": 4, "min_rotations": 2, "max_rotations": 5}),
            (0.75, {"min_n": 6, "max_n": 7, "min_rotations": 6}),
        ),
        _after("as the input.\n\n"),
    ),
    Gym(
        "simulation",
        "game_of_life",
        (
            (
                0.45,
                {
                    "grid_size_x": 3,
                    "grid_size_y": 3,
                    "filled_cells_weights": 0.35,
                    "filled_cells": 3,
                },
            ),
            (0.70, {"grid_size_x": 5, "grid_size_y": 5, "filled_cells_weights": 0.3}),
            (
                0.95,
                {
                    "grid_size_x": 6,
                    "grid_size_y": 6,
                    "filled_cells_weights": 0.3,
                    "simulation_steps": 3,
                },
            ),
        ),
        _game_of_life,
    ),
    Gym(
        "simulation",
        "color_cube_rotation",
        (
            (0.25, {"max_rotations": 1}),
            (0.55, {"min_rotations": 2, "max_rotations": 2}),
            (0.75, {"min_rotations": 3, "max_rotations": 3}),
        ),
        _cube,
    ),
    Gym(
        "simulation",
        "number_filtering",
        (
            (0.10, {"max_numbers": 4, "max_decimals": 0}),
            (0.40, {"min_numbers": 7, "max_numbers": 9, "max_decimals": 2}),
        ),
        lambda q: q.replace("\nReturn the new list in the same format.", ""),
    ),
    Gym(
        "simulation",
        "word_sequence_reversal",
        ((0.10, {"max_words": 4}), (0.40, {"min_words": 9, "max_words": 12})),
        _after("comma.\n\n"),
    ),
)
