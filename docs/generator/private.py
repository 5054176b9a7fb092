"""Schema two_tower: what operators call, and all that the migrations make, by file."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from docs.generator.attaching import CALLS
from docs.generator.catalogue import Catalogue, Function, Relation
from docs.generator.house import file_of, in_order
from docs.generator.markdown import block, code, link, prose
from docs.generator.relations import columns_of
from docs.generator.section import Section
from docs.generator.signatures import compact, full

# What a person calls, in the order in which one comes to need it.
OPERATORS_FUNCTIONS = (
    "tick",
    "freeze",
    "plan_rollback",
    "rollback",
    "plan_undo",
    "undo",
    "preview_page",
    "resume",
    "checkpoint",
    "run_audit",
    "force_version",
    "start_experiment",
    "end_experiment",
    "build_serving_index",
    "enqueue_job",
    "create_partitions_back_to",
    "learn_history",
    "allow_broadcasts",
)


SHOWN_ABOVE = {*OPERATORS_FUNCTIONS, *(call.function for call in CALLS)}


def operators_section(catalogue: Catalogue) -> Section:
    """The functions of the private schema that are for people."""
    private = {each.name: each for each in catalogue.functions if each.schema == "two_tower"}
    blocks = []
    for name in OPERATORS_FUNCTIONS:
        blocks += [f"### {name}()", prose(private[name].comment)]
        blocks += [block(full(private[name]), "sql")]
    return Section(
        "Operators' functions",
        "For whoever operates it: call them as `postgres` or with the service"
        " role. Workers and ticks call all others.",
        blocks,
        [f"{name}()" for name in OPERATORS_FUNCTIONS],
    )


def files_section(catalogue: Catalogue) -> Section:
    """What each migration makes in the private schema."""
    things: list[Relation | Function] = [*catalogue.relations, *catalogue.functions]
    blocks = []
    names = []
    private = in_order(each for each in things if each.schema == "two_tower")
    for file, made in groupby(private, key=file_of):
        names.append(file)
        found = list(made)
        blocks += [f"### {file}", *_relations(found), *_functions(found)]
    return Section(
        "The private schema",
        "For whoever reads or changes the engine: all of schema `two_tower`, by the file of"
        " `supabase/migrations` that makes it. No client has a grant on any of its tables.",
        blocks,
        names,
    )


def _relations(made: Iterable[Relation | Function]) -> Iterable[str]:
    for each in made:
        if isinstance(each, Relation):
            kind = "" if each.kind == "table" else f" ({each.kind})"
            yield f"#### {each.name}{kind}"
            yield prose(each.comment)
            if each.name == "settings":
                yield f"Its columns: {link('Settings', 'Settings')}."
            else:
                yield from columns_of(each)


def _functions(made: Iterable[Relation | Function]) -> Iterable[str]:
    functions = [each for each in made if isinstance(each, Function)]
    if functions:
        yield "Functions:"
        yield "\n".join(_item(each) for each in functions)


def _item(function: Function) -> str:
    if function.name in SHOWN_ABOVE:
        return f"- {link(code(function.name + '()'), function.name + '()')}"
    return f"- {code(compact(function))}\\\n  {prose(function.comment)}"
