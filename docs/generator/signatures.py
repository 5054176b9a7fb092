"""How a function is written down: with names, types and defaults, as one calls it."""

from __future__ import annotations

from docs.generator.catalogue import Argument, Function

WIDTH = 72
# Names of arguments that SQL takes for something else.
RESERVED = ("user",)


def call(function: Function) -> str:
    """Name and arguments; one argument a line where they are long."""
    return f"{function.schema}.{function.name}{_bracket(function.arguments)}"


def full(function: Function) -> str:
    """The same with what is returned."""
    columns = f" {_bracket(function.columns)}" if function.columns else ""
    return f"{call(function)} returns {function.result}{columns}"


def compact(function: Function) -> str:
    """All in one line, without the schema."""
    arguments = ", ".join(map(_argument, function.arguments))
    columns = f" ({', '.join(map(_argument, function.columns))})" if function.columns else ""
    return f"{function.name}({arguments}) → {function.result}{columns}"


def _bracket(arguments: list[Argument]) -> str:
    shown = [_argument(argument) for argument in arguments]
    line = f"({', '.join(shown)})"
    if len(line) <= WIDTH:
        return line
    inner = ",\n".join(f"  {argument}" for argument in shown)
    return f"(\n{inner}\n)"


def _argument(argument: Argument) -> str:
    default = f" default {argument.default}" if argument.default else ""
    name = f'"{argument.name}"' if argument.name in RESERVED else argument.name
    return f"{name} {argument.type}{default}".strip()
