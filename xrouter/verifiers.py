r"""One scorer per task kind, shared by training and evaluation.

:func:`score` dispatches on ``task.verifier``; :func:`final_answer` reduces free text to the
answer that is compared when two models are asked whether they agree. Scorers take prose as well
as a bare answer: each tries the text, the answer found in it, and that answer's normalised form.

Nothing here executes an answer. Some of reasoning-gym's own scorers do (``eval``), so those data
sets are refused, see :data:`EVALUATING_DATASETS`. Heavy imports (sympy, reasoning-gym) wait until
a scorer needs them.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from xrouter.episode import Task

Verifier = Callable[[Task, str], float]

#: Data sets of reasoning-gym 0.1 whose scorer evaluates the answer (``eval``, or sympy's parser,
#: which evaluates too) or, for ``bitwise_arithmetic``, an expression stored beside it.
EVALUATING_DATASETS = frozenset(
    {
        "binary_matrix",
        "bitwise_arithmetic",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "number_sorting",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)

_NUMBER = re.compile(
    r"(?:(?<![\w)])[-+])?(?<![A-Za-z_])"
    r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d+(?:\.\d*)?|\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?![\w.])|\s*[×*]\s*10\s*\^\s*[({]?[-+]?\d{1,3}[)}]?)?"
)
_FRACTION = re.compile(r"([-+]?\d+)\s*/\s*([-+]?\d+)(?![\d.])")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?")
_QUANTITY = re.compile(
    r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+)(?:\s*[%°]|\s+[^\W\d_][^\d=,:;()]{0,23})"
)
_MARKER = re.compile(
    r"\b(?:answer|correct\s+(?:option|choice))\b(?:\s+to\s+[^.:\n]{1,60}?)?[\"'*]*\s*"
    r"(?:(?P<verb>is|was)\b[ \t]*:?|[:=：])[*]*[ \t]*"
    r"|####[ \t]*(?=[-+$€£\d.])|^[ \t#*]*(?:final[ \t]+)?answer[ \t*:]*$",
    re.IGNORECASE | re.MULTILINE,
)
_LETTER = re.compile(r"\(?([A-Z])\)?(?=$|[).:,;]|\s+[-–—(])")
_NAMED_LETTER = re.compile(r"\b(?:option|choice)\s+\(?([A-Z])\b|\(([A-Z])\)", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{2,}")
_BARE_GRID = re.compile(r"[\d\s\[\],.;_|+-]+")
_MAX_TEXT_CHARS = 8000
_MAX_LAYERS = 5
_MAX_BOXES = 20
_CANONICAL_WORDS = {w.lower(): w for w in ("Yes", "No", "True", "False", "None")}
_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "\u00a0": " ", "\u202f": " ", "“": '"', "”": '"', "’": "'"}
)
_TOOL_MARKUP = re.compile(
    r"</?tool_call|<\|[^|\s]{1,40}\|>|\bcall_[a-z0-9_]+|\bselect_response\b|\"(?:name|arguments)\"\s*:"
)


def score(task: Task, answer: str) -> float:
    """Quality of ``answer`` for ``task``, in [0, 1]; 1.0 alone means fully right.

    Raises ValueError when ``task.verifier`` names no scorer, or the task lacks what its scorer
    needs.
    """
    try:
        verifier = VERIFIERS[task.verifier]
    except KeyError:
        raise ValueError(
            f"task {task.id!r}: verifier={task.verifier!r} is unknown; use one of "
            f"{', '.join(VERIFIERS)}"
        ) from None
    return min(1.0, max(0.0, float(verifier(task, answer))))


@lru_cache(maxsize=1 << 13)
def final_answer(text: str) -> str | None:
    r"""The final answer of free text in normalised form, or None where there is none.

    Looks for the last ``\boxed{}``, then the last "Answer: …" / "the answer is …", then for a
    chosen letter, a last line that is itself an answer, and the last number. Units behind a
    number are dropped, so that "42 apples" agrees with "42".
    """
    span, marked = _find_answer(text)
    if span is None:
        return None
    value = normalize(span)
    if not marked and (equation := re.search(r"\w\s=\s+([^=\s][^=]*)$", value)):
        value = equation.group(1)
    elif not marked and _is_prose(value):
        value = _closing_value(value) or ""
    return _reduce(value) or None


def normalize(text: str) -> str:
    """Strip markup and spelling variants that do not change an answer: ``$…$``, LaTeX fractions,
    bold, code ticks, quotes, a closing period, grouped thousands, trailing zeros, spaces."""
    for _ in range(_MAX_LAYERS):
        value = _normalize_layer(text)
        if value == text:
            break
        text = value
    return text


def _normalize_layer(text: str) -> str:
    value = _latex_to_text(text.translate(_CHARACTERS))
    value = "\n".join(" ".join(line.split()) for line in value.splitlines() if line.strip())
    value = _unwrap(value)
    if value[:1] in "[({" and value[-1:] in "])}" and len(value) > 2:
        value = re.sub(r"\s*,\s*", ", ", value.replace("\n", " "))
        value = re.sub(r"(?<=[\[({])\s+|\s+(?=[\])}])", "", value)
    value = re.sub(r"^\(([\w.+-]+)\)$", r"\1", value)
    return _plain_number(value)


# --- finding the answer in prose ---------------------------------------------------------------


def _find_answer(text: str) -> tuple[str | None, bool]:
    """(span, marked): the stretch of text that holds the answer, and whether the text said so."""
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]{3,}", "  ", text[-_MAX_TEXT_CHARS:]))
    if (boxed := _last_boxed(text)) is not None:
        return boxed, True
    for match in reversed(list(_MARKER.finditer(text))):
        if span := _marked_span(text[match.end() :], spoken=bool(match.group("verb"))):
            return span, True
    bare = re.sub(r"\\boxed\s*(?:\{\s*\}?)?", "", text).strip().strip("`").strip()
    if not bare:
        return None, False
    if _BARE_GRID.fullmatch(bare) or bare[0] + bare[-1] in ("[]", "{}", "()"):
        return bare, False
    return next(
        (line for line in reversed(bare.splitlines()) if line.strip(" \t`*_#-")), None
    ), False


def _last_boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{…}``, braces nested to any depth."""
    start = len(text)
    for _ in range(_MAX_BOXES):
        start = text.rfind("\\boxed", 0, start)
        if start < 0:
            return None
        rest = text[start + len("\\boxed") :].lstrip()
        if rest.startswith("{") and (end := _closing_brace(rest)) is not None:
            return rest[1:end].strip() or None
    return None


def _closing_brace(text: str) -> int | None:
    depth = 0
    for i, char in enumerate(text):
        if char in "{}" and (i == 0 or text[i - 1] != "\\"):
            depth += 1 if char == "{" else -1
            if depth == 0:
                return i
    return None


def _marked_span(rest: str, *, spoken: bool) -> str:
    """What follows "Answer:" on its line, or the block of lines under it; ``spoken`` cuts the
    explanation that tends to follow "the answer is"."""
    if '"' in rest and (quoted := re.match(r'"([^"\n]*)"\s*\}?\s*$', rest.partition("\n")[0])):
        return quoted.group(1).strip()
    line = rest.partition("\n")[0]
    if line.strip(" \t*_`$") in ("", "\\[", "\\("):
        block = re.split(r"\n\s*\n", rest.lstrip(), maxsplit=1)[0]
        return re.sub(r"^\s*```\w*\n?|\n?```.*$", "", block, flags=re.DOTALL).strip()
    if line.lstrip()[:1] in "[{" and line.count("[") + line.count("{") > len(
        re.findall(r"[\]}]", line)
    ):
        line = re.split(r"\n\s*\n", rest, maxsplit=1)[0]
    line = re.sub(r"\s*\((?:since|because|as)\b.*$", "", line, flags=re.DOTALL)
    line = re.split(r"(?<=\d)\.\s+(?=[A-Z])", line, maxsplit=1)[0]
    if spoken:
        line = re.split(
            r"[.!?;]\s+(?=[A-Z])|,?\s+(?:because|since|so|as|which)\b", line, maxsplit=1
        )[0]
    return line.strip()


def _is_prose(value: str) -> bool:
    return len(_WORD.findall(value)) >= 3


def _closing_value(value: str) -> str | None:
    """The letter or last number that an unmarked sentence ends on, or the sentence when it is
    short and has neither."""
    if letters := _NAMED_LETTER.findall(value):
        return (letters[-1][0] or letters[-1][1]).upper()
    if numbers := _NUMBER.findall(value):
        return _plain_number(numbers[-1])
    return value if len(value.split()) <= 12 else None


# --- normalising -------------------------------------------------------------------------------


def _latex_to_text(text: str) -> str:
    if "\\" not in text and "$" not in text:
        return text
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf|operatorname)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right|displaystyle|!|,|;|:|quad)(?![a-zA-Z])", "", text)
    part = r"\{([^{}]*)\}"
    text = re.sub(r"\\[dt]?frac\s*(\d)(\d)", r"\1/\2", text)
    for _ in range(4):  # innermost first, so nested fractions resolve
        text = re.sub(rf"\\[dt]?frac\s*{part}\s*{part}", _fraction_text, text)
        text = re.sub(rf"\\sqrt\s*{part}", r"sqrt(\1)", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "°", text)
    for latex, plain in (("\\times", "×"), ("\\cdot", "·"), ("\\pi", "pi"), ("\\infty", "inf")):
        text = text.replace(latex, plain)
    text = re.sub(r"\\([%$#&_{}])", r"\1", text)
    text = re.sub(r"^\s*\\[(\[]|\\[)\]]\s*\.?\s*$", "", text)
    return text.replace("$", "")


def _fraction_text(match: re.Match[str]) -> str:
    top, bottom = (
        p.strip() if re.fullmatch(r"\s*-?\w+\s*", p) else f"({p.strip()})" for p in match.groups()
    )
    return f"{top}/{bottom}"


def _unwrap(value: str) -> str:
    """Take off bold, code ticks, quotes and closing punctuation, layer by layer."""
    while True:
        before = value
        value = value.strip(" \t\n`*").strip()
        if value.endswith(("!", ",", ";")) or (value.endswith(".") and not value.endswith("..")):
            value = value[:-1]
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if value == before:
            return value


def _plain_number(value: str) -> str:
    """``$1,234.50`` -> ``1234.5``; anything that is not one number stays as it is."""
    body = re.sub(r"^([-+]?)[$€£]\s*|\s*%$", r"\1", value)
    if not _PLAIN_NUMBER.fullmatch(body) or not re.search(r"\d", body):
        return value
    body = body.replace(",", "").lstrip("+")
    if "." in body:
        body = body.rstrip("0").rstrip(".")
        body = re.sub(r"^(-?)(?=\.|$)", r"\g<1>0", body)
    return "0" if re.fullmatch(r"-0+", body) else body


def _reduce(value: str) -> str:
    """Bring a normalised answer to the form that is compared: no unit, no ``x =``, a bare choice
    letter, ``Yes`` / ``No`` / ``True`` / ``False`` / ``None`` in one spelling."""
    if value.count("=") == 1:
        value = re.sub(r"^[A-Za-z]\s*=\s*(?=\S)", "", value)
    value = re.sub(r"^\(([A-Z])\)\s*\S.*$|^([A-Z])\)(?:\s.*)?$", r"\1\2", value)
    if (match := _QUANTITY.fullmatch(value)) and len(value.split()) <= 4:
        value = match.group(1)
    value = _plain_number(value)
    if re.fullmatch(r"[a-z]", value):
        return value.upper()
    return _CANONICAL_WORDS.get(value.lower(), value)


def _candidates(answer: str) -> Iterator[str]:
    """The text, the answer found in it, and its normalised forms, without repeats."""
    seen: set[str] = set()
    span, _ = _find_answer(answer)
    for text in (answer.strip(), span, span and normalize(span), final_answer(answer)):
        if text and text not in seen:
            seen.add(text)
            yield text


# --- verifiers ---------------------------------------------------------------------------------


def _exact(task: Task, answer: str) -> float:
    """Equal after normalisation, case ignored."""
    gold = normalize(task.gold).casefold()
    reduced = _reduce(normalize(task.gold)).casefold()
    texts = [normalize(c).casefold() for c in _candidates(answer)]
    return float(bool(gold) and (gold in texts or (reduced == gold and reduced in texts)))


def parse_number(text: str) -> float | None:
    """The number an answer gives: plain, grouped, scientific, a fraction or a mixed number, units
    ignored. With several, the first if the text opens with it, else the last."""
    value = normalize(text)
    if re.search(r"[-+*/×^]\s*\S+\s*=|^[^\d]*=", value):
        value = value.rpartition("=")[2]
    value = re.sub(r"^[-+]?\s*[$€£]\s*", lambda m: "-" if "-" in m.group() else "", value.strip())
    matches = list(_NUMBER.finditer(value))
    if not matches:
        return None
    match = matches[0] if matches[0].start() == 0 else matches[-1]
    for fraction in _FRACTION.finditer(value):
        if fraction.start() <= match.start() < fraction.end():
            return _ratio(fraction, value)
    if mixed := re.match(r"([-+]?\d+)\s+(?:and\s+)?(\d+)\s*/\s*(\d+)", value):
        whole, top, bottom = (int(g) for g in mixed.groups())
        sign = -1 if mixed.group(1).startswith("-") else 1
        return None if bottom == 0 else whole + sign * top / bottom
    return _to_float(match.group())


def _ratio(match: re.Match[str], value: str) -> float | None:
    top, bottom = int(match.group(1)), int(match.group(2))
    if bottom == 0:
        return None
    whole = re.search(r"([-+]?\d+)(?:\s+and)?\s+$", value[: match.start()])
    if whole and match.group(1)[0].isdigit():
        sign = -1 if whole.group(1).startswith("-") else 1
        return float(int(whole.group(1)) + sign * Fraction(top, bottom))
    try:
        return float(Fraction(top, bottom))
    except OverflowError:
        return None


def _to_float(text: str) -> float | None:
    parts = re.split(r"\s*[×*]\s*10\s*\^\s*", text.replace(",", ""))
    try:
        value = float(parts[0]) * (10.0 ** int(parts[1].strip("(){}")) if len(parts) == 2 else 1.0)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _number(task: Task, answer: str) -> float:
    """Equal numbers. Whole numbers must be equal; others within ``metadata['rel_tol']``
    (relative, default 1e-6). ``rel_tol`` and ``abs_tol`` in the metadata hold for both."""
    gold = parse_number(task.gold)
    if gold is None:
        raise ValueError(f"task {task.id!r}: gold={task.gold!r} is not a number")
    rel = float(task.metadata.get("rel_tol", 0.0 if gold.is_integer() else 1e-6))
    absolute = float(task.metadata.get("abs_tol", 1e-9))
    span, _ = _find_answer(answer)
    given = parse_number(span) if span else None
    if given is None:
        return 0.0
    return float(math.isclose(given, gold, rel_tol=rel, abs_tol=absolute))


def choice_letter(text: str) -> str | None:
    """The letter of a multiple-choice answer, A to Z, or None."""
    span, marked = _find_answer(text)
    value = normalize(span or "")
    if match := _LETTER.match(value):
        return match.group(1)
    if re.fullmatch(r"[a-z]", value):
        return value.upper()
    if letters := _NAMED_LETTER.findall(value if marked else text):
        return (letters[-1][0] or letters[-1][1]).upper()
    return None


def _choice(task: Task, answer: str) -> float:
    """The gold letter, or the text of that choice where ``metadata['choices']`` lists the texts
    (A first)."""
    gold = choice_letter(task.gold)
    if gold is None:
        raise ValueError(f"task {task.id!r}: gold={task.gold!r} is not a choice letter")
    given = choice_letter(answer)
    choices = list(task.metadata.get("choices", ()))
    index = ord(gold) - ord("A")
    if given is None and index < len(choices):
        wanted = normalize(str(choices[index])).casefold()
        return float(any(normalize(c).casefold() == wanted for c in _candidates(answer)))
    return float(given == gold)


#: Powers and factorials whose evaluation could take for ever.
_EXPLOSIVE = re.compile(
    r"\^\s*\{?\s*-?\d{6,}|[a-z)}\]]\s*\^\s*\{?\s*-?\d{3,}|\^\s*\{[^{}]*(?:\^|!)|\^\s*\w+\s*\^"
    r"|\d{4,}\s*!|!\s*!|\*\*"
)
_MAX_EXPRESSION_CHARS = 300
_MAX_NESTING = 8
_MATH_SECONDS = 3


def _math(task: Task, answer: str) -> float:
    r"""Mathematical equality by math-verify.

    math-verify bounds its time with signals, which exist in the main thread only; elsewhere its
    time-outs are off. Inputs that are known to run away (towers of powers, large factorials, deep
    nesting, long texts) are therefore not evaluated in any thread, but compared as strings.
    """
    if _exact(task, answer):
        return 1.0
    span, _ = _find_answer(answer)
    if not span or _is_explosive(span):
        return 0.0
    gold, given = _parse_math(_as_latex(task.gold)), _parse_math(_as_latex(span))
    if not gold or not given:
        return 0.0
    verify = _math_verify().verify
    return float(bool(verify(list(gold), list(given), timeout_seconds=_time_limit())))


def _is_explosive(text: str) -> bool:
    if len(text) > _MAX_EXPRESSION_CHARS or _EXPLOSIVE.search(text):
        return True
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest > _MAX_NESTING


def _time_limit() -> int | None:
    return _MATH_SECONDS if threading.current_thread() is threading.main_thread() else None


def _as_latex(text: str) -> str:
    """One ``$…$`` expression for math-verify's parser."""
    value = text.strip().rstrip(".").strip()
    value = re.sub(r"^(?:\\[(\[]|\$+)|(?:\\[)\]]|\$+)$", "", value).strip()
    return f"${value}$"


@lru_cache(maxsize=1 << 12)
def _parse_math(text: str) -> tuple[Any, ...]:
    return tuple(_math_verify().parse(text, parsing_timeout=_time_limit()))


@cache
def _math_verify() -> Any:
    import math_verify

    # It warns that time-outs are off and the caller must bound the work; _is_explosive does.
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return math_verify


def _reasoning_gym(task: Task, answer: str) -> float:
    """The data set's own ``score_answer``: ``metadata['dataset']`` names it, and
    ``metadata['entry']`` is the entry (question, answer, metadata).

    Returns the graded score, or 0 / 1 when ``metadata['strict']`` is true: several data sets give
    up to 0.9 for a wrong answer that resembles the right one.
    """
    try:
        name, entry = task.metadata["dataset"], task.metadata["entry"]
    except KeyError as missing:
        raise ValueError(
            f"task {task.id!r}: metadata lacks {missing}; verifier 'reasoning_gym' needs "
            "'dataset' and 'entry'"
        ) from None
    scorer = _gym_scorer(name)
    best = 0.0
    gold = {normalize(task.gold), final_answer(task.gold)} - {"", None}
    for candidate in _candidates(answer):
        if candidate in gold or normalize(candidate) in gold:
            return 1.0
        best = max(best, float(scorer(candidate, entry)))
        if best == 1.0:
            return 1.0
    best = min(best, 1.0 - 1e-9)
    return 0.0 if task.metadata.get("strict") else best


@cache
def _gym_scorer(name: str) -> Callable[[str, Any], float]:
    if name in EVALUATING_DATASETS:
        raise ValueError(
            f"reasoning-gym dataset {name!r}: its scorer evaluates text as code; use verifier "
            "'exact', 'number' or 'math' for these tasks"
        )
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise ValueError(f"metadata.dataset={name!r} is not a reasoning-gym dataset")
    return reasoning_gym.create_dataset(name, size=1, seed=0).score_answer


def _recorded(task: Task, answer: str) -> float:
    """Membership in ``metadata['correct_answers']``, the normalised answers that were correct
    when the outcomes were recorded."""
    try:
        correct = task.metadata["correct_answers"]
    except KeyError:
        raise ValueError(
            f"task {task.id!r}: metadata lacks 'correct_answers'; verifier 'recorded' needs it"
        ) from None
    return float(answer.strip() in correct)


def _chat(task: Task, answer: str) -> float:
    """1.0 for a genuine reply: some words, no tool-call markup, not a bare JSON value."""
    text = answer.strip()
    words = _WORD.search(text)
    structured = text[:1] in "{[" and text[-1:] in "}]"
    return float(bool(words) and not structured and not _TOOL_MARKUP.search(text))


VERIFIERS: dict[str, Verifier] = {
    "exact": _exact,
    "number": _number,
    "math": _math,
    "choice": _choice,
    "reasoning_gym": _reasoning_gym,
    "recorded": _recorded,
    "chat": _chat,
}
