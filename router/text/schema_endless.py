"""Finds JSON Schemas that only an endless value could satisfy, because a part is required within itself."""

from collections.abc import Collection, Mapping
from typing import Any

_HAVE_PARTS = {"object", "array"}


def endless(schema: Any) -> str | None:
    """A reference that is required within itself, so that no value satisfies the schema; None if there is none.

    A result is certain. Keywords that are not examined are assumed to be satisfiable.
    """
    targets = {reference: target for reference in _references(schema) if (target := _target(schema, reference))}
    ending: set[str] = set()
    while more := {r for r, target in targets.items() if r not in ending and _ends(target, ending, targets)}:
        ending |= more
    if _ends(schema, ending, targets):
        return None
    return min(set(targets) - ending)


def _ends(schema: Any, ending: Collection[str], targets: Mapping[str, Any]) -> bool:
    """Whether a finite value may satisfy a schema, given that one satisfies each reference in `ending`."""
    if not isinstance(schema, dict) or "const" in schema or "enum" in schema:
        return True
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference in targets and reference not in ending:
        return False
    for keyword in ("anyOf", "oneOf"):
        options = schema.get(keyword)
        if isinstance(options, list) and options and not any(_ends(s, ending, targets) for s in options):
            return False
    parts = schema.get("allOf")
    if isinstance(parts, list) and not all(_ends(s, ending, targets) for s in parts):
        return False
    kinds = schema.get("type")
    kinds = {kinds} if isinstance(kinds, str) else set(kinds) if isinstance(kinds, list) else set()
    if not kinds or not kinds <= _HAVE_PARTS:
        return True
    ways = [_object_ends if kind == "object" else _array_ends for kind in kinds]
    return any(way(schema, ending, targets) for way in ways)


def _object_ends(schema: Mapping[str, Any], ending: Collection[str], targets: Mapping[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return True
    return all(_ends(properties[name], ending, targets) for name in required if name in properties)


def _array_ends(schema: Mapping[str, Any], ending: Collection[str], targets: Mapping[str, Any]) -> bool:
    least, first = schema.get("minItems"), schema.get("prefixItems")
    if not isinstance(least, int) or least < 1:
        return True
    first = first if isinstance(first, list) else []
    if not all(_ends(item, ending, targets) for item in first[:least]):
        return False
    return len(first) >= least or _ends(schema.get("items"), ending, targets)


def _references(schema: Any) -> set[str]:
    """All local references in a schema."""
    found: set[str] = set()
    left = [schema]
    while left:
        at = left.pop()
        if isinstance(at, dict):
            reference = at.get("$ref")
            if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
                found.add(reference)
            left += at.values()
        elif isinstance(at, list):
            left += at
    return found


def _target(schema: Any, reference: str) -> Any:
    """The schema that a local reference leads to; None if there is none."""
    at = schema
    for name in reference.split("/")[1:]:
        step = name.replace("~1", "/").replace("~0", "~")
        try:
            at = at[int(step)] if isinstance(at, list) else at[step]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return at
