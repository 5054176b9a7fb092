"""Expressions of the catalogue as a person says them: defaults of columns, and what checks allow.

They are read from sessions whose interval style is postgres_verbose.
"""

from __future__ import annotations

import re

from docs.generator.markdown import code

_CAST = re.compile(
    r"::(?:double precision|timestamp with time zone|character varying|\w+(?:\.\w+)?)(?:\[\])?"
)
_UNITS = {"mon": "month", "min": "minute", "sec": "second"}
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
# What a check may compare with a constant: the column, its length, all its items.
_SUBJECTS = {"": "", "length": " characters", "cardinality": " items", "ALL": " each"}


def readable_type(name: str) -> str:
    """The short name of a type."""
    return name.replace("timestamp with time zone", "timestamptz")


def readable_default(expression: str | None) -> str:
    """A default as one writes it: without casts, which the column has anyway."""
    if expression is None:
        return ""
    if expression.startswith("nextval("):
        return "next id"
    return readable_code(expression)


def readable_code(expression: str) -> str:
    """An expression without casts, keywords in lower case."""
    expression = _CAST.sub("", expression)
    expression = re.sub(r"= ANY \(ARRAY\[(.*?)\]\)", r"in (\1)", expression)
    expression = re.sub(r'"(\w+)"', r"\1", expression)
    expression = re.sub(r"'@ ([^']*)'", lambda found: f"'{_interval(found[1])}'", expression)
    parts = re.split(r"('(?:[^']|'')*')", expression)
    words = r"\b(?:AND|OR|NOT|IS|NULL|ALL|ANY|ARRAY|TRUE|FALSE|CASE|WHEN|THEN|ELSE|END|VALUE)\b"
    lowered = [re.sub(words, lambda word: word[0].lower(), part) for part in parts[::2]]
    return "".join(
        piece for pair in zip(lowered, [*parts[1::2], ""], strict=True) for piece in pair
    )


def readable_limit(definition: str) -> str | None:
    """What `CHECK (...)` of one column allows: "1 to 500", "above 0", a list of values.

    None where it says something else.
    """
    plain = _CAST.sub("", _inside(definition))
    if found := re.fullmatch(r"\w+ = ANY \(ARRAY\[(.*)\]\)", plain):
        return readable_values([value.strip("'") for value in found[1].split(", ")])
    limits: dict[str, dict[str, str]] = {}
    for clause in plain.split(" AND "):
        limit = _limit(clause[1:-1] if clause.startswith("(") else clause)
        if limit is None:
            return None
        subject, operator, value = limit
        limits.setdefault(subject, {})[operator] = value
    return ", ".join(_say(limit) + _SUBJECTS[subject] for subject, limit in limits.items())


def readable_values(values: list[str]) -> str:
    """A choice of values."""
    *most, last = map(code, values)
    return f"{', '.join(most)} or {last}" if most else last


def readable_rule(name: str, definition: str) -> str:
    """A check by its name, which is a sentence, and its expression."""
    return f"{name.replace('_', ' ')}: {code(readable_code(_inside(definition)))}"


def readable_number(number: str) -> str:
    """With a comma for thousands."""
    return f"{int(number):,}" if number.isdecimal() else number


def _inside(definition: str) -> str:
    return definition.removeprefix("CHECK (").removesuffix(")")


def _limit(clause: str) -> tuple[str, str, str] | None:
    """Subject, operator and constant of a comparison, whichever side the constant is on."""
    constant = r"(?P<value>-?[\d.]+|'[^']*')"
    subject = r"(?:(?P<function>length|cardinality|ALL) ?\(\w+\)|[a-z]\w*)"
    operator = r"(?P<operator>[<>]=?)"
    found = re.fullmatch(f"{subject} {operator} {constant}", clause)
    flipped = re.fullmatch(f"{constant} {operator} {subject}", clause)
    if found:
        return found["function"] or "", found["operator"], _constant(found["value"])
    if flipped:
        operator = _FLIPPED[flipped["operator"]]
        return flipped["function"] or "", operator, _constant(flipped["value"])
    return None


def _say(limit: dict[str, str]) -> str:
    low, high = limit.get(">="), limit.get("<=")
    if low is not None and high is not None:
        return f"{low} to {high}"
    words = {">=": "{} or more", "<=": "at most {}", ">": "above {}", "<": "below {}"}
    return ", ".join(words[operator].format(value) for operator, value in limit.items())


def _constant(literal: str) -> str:
    text = literal.strip("'")
    is_interval = text.startswith("@ ")
    return _interval(text.removeprefix("@ ")) if is_interval else readable_number(text)


def _interval(text: str) -> str:
    """An interval with its units in full."""
    for short, long in _UNITS.items():
        text = re.sub(rf"\b{short}(s?)\b", rf"{long}\1", text)
    return text
