"""Reads the JSON of a call, and repairs models' mistakes where only one meaning is possible."""

import json
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

# Names that models write for the format's `arguments`.
_ARGUMENTS = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class Called:
    """A call that was read. arguments: the JSON of an object, or as much of it as there is."""

    name: str
    arguments: str


def read(text: str) -> Called | None:
    """Read a complete call; None if it is none, or could have several meanings.

    Accepted mistakes are: keys in any order and further keys, `parameters` for `arguments`, no arguments or null for an
    empty object, arguments as a string of JSON, a call inside `function` as in OpenAI's API, and raw line breaks and
    other control characters in strings.
    """
    try:
        call = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    call = _inner(call)
    arguments = _arguments(call)
    if arguments is None or not _usable(call.get("name")):
        return None
    return Called(call["name"], json.dumps(arguments))


def partly(text: str) -> Called | None:
    """Read a call that the output's end cut off; None if its name is incomplete."""
    try:
        call = _inner(from_json(text, allow_partial=True))
    except ValueError:
        return None
    if not _usable(call.get("name")):
        return None
    given = any(key in call for key in _ARGUMENTS)
    arguments = _arguments(call) if given else None
    return Called(call["name"], "" if arguments is None else json.dumps(arguments))


def closed(arguments: str) -> dict[str, Any] | None:
    """Close the JSON of an object that was cut off; None if it does not begin an object."""
    try:
        value = from_json(arguments or "{}", allow_partial="trailing-strings")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _inner(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict):
        return {}
    inner = call.get("function")
    return inner if isinstance(inner, dict) and "name" not in call else call


def _arguments(call: dict[str, Any]) -> dict[str, Any] | None:
    given = [call[key] for key in _ARGUMENTS if call.get(key) is not None]
    if len(given) > 1:
        return None
    value = given[0] if given else {}
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}", strict=False)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def _usable(name: object) -> bool:
    return isinstance(name, str) and name != "" and name.isprintable()
