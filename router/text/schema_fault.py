"""Finds the part of a JSON Schema at fault, because the grammar engine says what is wrong but not where."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from router.text.grammar import Schema
from router.text.schema_closed import BY_NAME, LISTS, SINGLE

# A path of keys and indices from the top of a schema.
Path = tuple[str | int, ...]
_LIMITS = LLParserLimits(verbose_errors=False)
_QUOTED = re.compile(r"\n +\d+ \| ")
_ROOT = "root"
# The search ends after so many parts, because the engine reads the whole schema for each.
_TRIES = 256


@dataclass(frozen=True, slots=True)
class SchemaFault:
    """A fault. param: the path in the request of the part at fault. reason: what is wrong with it."""

    param: str
    reason: str


def brief(message: str) -> str:
    """The engine's message as one line, without the grammar that it quotes."""
    return " ".join(_QUOTED.split(message, maxsplit=1)[0].split())[:300]


def fault_of(schema: Schema) -> SchemaFault | None:
    """The innermost part of a schema that is at fault; None if there is no fault.

    Each part is tried separately, with the whole schema available to its references. The search continues in a part
    that has the same fault as the whole. In a large schema the result may be a part around the innermost one.
    """
    whole = _moved(schema.content)
    reason = _try(whole, (), schema.strict)
    if reason is None:
        return None
    path: Path = ()
    seen: set[Path | None] = set()
    tries = 0
    while path not in seen:
        seen.add(path)
        for inner in _parts(schema.content, path):
            if seen.intersection((inner, _target(schema.content, inner))):
                continue
            tries += 1
            if tries > _TRIES:
                break
            if _try(whole, inner, schema.strict) == reason:
                path = inner
                break
    return SchemaFault(schema.param + "".join(map(_step, path)), brief(reason))


def _try(whole: Any, path: Path, strict: bool) -> str | None:
    """The engine's message about the part of a schema at a path; None if it is fine."""
    pointer = "/".join(str(p).replace("~", "~0").replace("/", "~1") for p in ("#", "$defs", _ROOT, *path))
    document = {"$ref": pointer, "$defs": {_ROOT: whole}}
    overrides = None if strict else {"lenient": True}
    try:
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(document), overrides=overrides)  # type: ignore[arg-type]
        reason = LLMatcher.validate_grammar(grammar, limits=_LIMITS)
    except ValueError as error:
        reason = str(error)
    # The engine's position is in the document that it was given, not in the client's.
    reason = reason.partition(" while processing json-schema:")[0].partition(" Enable 'coerce_one_of'")[0]
    return reason.replace(f"/$defs/{_ROOT}", "") or None


def _moved(schema: Any) -> Any:
    """The schema with its references moved below `#/$defs/root`."""
    if isinstance(schema, dict):
        return {k: _moved_reference(v) if k == "$ref" and isinstance(v, str) else _moved(v) for k, v in schema.items()}
    return [_moved(item) for item in schema] if isinstance(schema, list) else schema


def _moved_reference(reference: str) -> str:
    return f"#/$defs/{_ROOT}{reference[1:]}" if reference == "#" or reference.startswith("#/") else reference


def _parts(content: Any, path: Path) -> Iterator[Path]:
    """The paths of the schemas directly within the one at `path`, and of those that it refers to."""
    at = _at(content, path)
    if not isinstance(at, dict):
        return
    if (target := _target(content, path)) is not None:
        yield target
    for keyword in BY_NAME:
        if isinstance(at.get(keyword), dict):
            yield from ((*path, keyword, name) for name in at[keyword])
    for keyword in LISTS:
        if isinstance(at.get(keyword), list):
            yield from ((*path, keyword, i) for i in range(len(at[keyword])))
    for keyword in SINGLE:
        if isinstance(at.get(keyword), dict):
            yield (*path, keyword)


def _at(content: Any, path: Path) -> Any:
    for step in path:
        content = content[step]
    return content


def _target(content: Any, path: Path) -> Path | None:
    """The path to which the reference of the schema at `path` leads."""
    at = _at(content, path)
    reference = at.get("$ref") if isinstance(at, dict) else None
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    out: list[str | int] = []
    for name in reference[2:].split("/"):
        step: str | int = name.replace("~1", "/").replace("~0", "~")
        if isinstance(content, list) and name.isdecimal():
            step = int(name)
        try:
            content = content[step]
        except (KeyError, IndexError, TypeError):
            return None
        out.append(step)
    return tuple(out)


def _step(step: str | int) -> str:
    return f"[{step}]" if isinstance(step, int) else f".{step}"
