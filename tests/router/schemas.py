"""Makes random JSON Schemas whose instances have bounded lengths."""

import random
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
_NAMES = ("id", "name", "tags", "a b", 'q"uote', "größe", "x/y", "next", "value", "kind")
_PATTERNS = ("^[a-z]{2,5}$", "^(red|green|blue)$", "^[0-9]{3}-[0-9]{2}$", "^\\d+$", "^[^a-c]{1,4}$", "ab")
_VALUES: tuple[Any, ...] = ("on", "off", 'a"b', "é", 3, -1.5, True, None, [1, "x"], {"k": 1})


def schema(seed: int) -> Json:
    """The schema of a seed. One in three refers to definitions, some of which refer to themselves."""
    rng = random.Random(seed)
    if seed % 3:
        return _object(rng, 3)
    named = {f"d{i}": _any(rng, 1) for i in range(rng.randint(1, 2))}
    properties = {name: {"$ref": f"#/$defs/{name}"} for name in named} | _properties(rng, 1)
    if rng.random() < 0.5:
        child = {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}
        return {"$defs": named, **_closed(rng, properties | {"children": child}, optional=("children",))}
    return {"$defs": named, **_closed(rng, properties)}


def _any(rng: random.Random, depth: int) -> Json:
    leaves: list[Callable[[random.Random], Json]] = [_string, _number, _enum, _const, _simple]
    if depth <= 0 or rng.random() < 0.5:
        return rng.choice(leaves)(rng)
    return rng.choice([_object, _array, _any_of, _tuple])(rng, depth - 1)


def _object(rng: random.Random, depth: int) -> Json:
    return _closed(rng, _properties(rng, depth))


def _properties(rng: random.Random, depth: int) -> Json:
    return {name: _any(rng, depth) for name in rng.sample(_NAMES, rng.randint(1, 3))}


def _closed(rng: random.Random, properties: Json, optional: tuple[str, ...] = ()) -> Json:
    required = [name for name in properties if name not in optional and rng.random() < 0.8]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(rng: random.Random, depth: int) -> Json:
    least = rng.randint(0, 1)
    return {"type": "array", "items": _any(rng, depth), "minItems": least, "maxItems": least + rng.randint(0, 2)}


def _tuple(rng: random.Random, depth: int) -> Json:
    return {"type": "array", "prefixItems": [_any(rng, depth), _any(rng, 0)], "items": False, "minItems": 1}


def _any_of(rng: random.Random, depth: int) -> Json:
    return {"anyOf": [_any(rng, depth), _any(rng, 0), {"type": "null"}]}


def _string(rng: random.Random) -> Json:
    if rng.random() < 0.4:
        pattern = rng.choice(_PATTERNS)
        return {"type": "string", "pattern": pattern, "maxLength": 8}
    least = rng.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 9)}


def _number(rng: random.Random) -> Json:
    low = rng.randint(-120, 100)
    if rng.random() < 0.6:
        return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 300)}
    return {"type": "number", "exclusiveMinimum": low / 4, "maximum": low / 4 + rng.randint(1, 20)}


def _enum(rng: random.Random) -> Json:
    return {"enum": rng.sample(_VALUES, rng.randint(1, 4))}


def _const(rng: random.Random) -> Json:
    return {"const": rng.choice(_VALUES)}


def _simple(rng: random.Random) -> Json:
    return {"type": rng.choice(["boolean", "null", ["boolean", "null"]])}
