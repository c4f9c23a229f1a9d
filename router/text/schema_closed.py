"""Closes the objects of a JSON Schema to unnamed properties where the client left that open."""

from typing import Any

# Keywords whose value contains schemas: by name, in a list, or as the value itself.
BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
LISTS = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
SINGLE = ("items", "additionalItems", "additionalProperties", "not", "contains", "propertyNames")
# Beside these keywords, `properties` does not name all properties of an object.
_OPEN = ("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties", "anyOf", "oneOf")
_NOTES = ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment")
_TOP = ("$defs", "definitions", "$schema", "$id")


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with `additionalProperties: false` wherever an object names properties and leaves others open.

    Whatever the result validates, `schema` validates too. A schema that combines others (`allOf`, `$ref` beside more)
    is unchanged, because closed parts would exclude each other.
    """
    return schema if _joins(schema) else _closed(schema)


def _inside(schema: dict[str, Any]) -> list[Any]:
    out = [part for key in BY_NAME if isinstance(schema.get(key), dict) for part in schema[key].values()]
    out += [part for key in LISTS if isinstance(schema.get(key), list) for part in schema[key]]
    return out + [schema[key] for key in SINGLE if isinstance(schema.get(key), dict)]


def _joins(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return False
    beside = schema.keys() - {"$ref", *_NOTES, *_TOP}
    return "allOf" in schema or ("$ref" in schema and bool(beside)) or any(map(_joins, _inside(schema)))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    for key in BY_NAME:
        if isinstance(schema.get(key), dict):
            out[key] = {name: _closed(part) for name, part in schema[key].items()}
    for key in LISTS:
        if isinstance(schema.get(key), list):
            out[key] = [_closed(part) for part in schema[key]]
    for key in SINGLE:
        if isinstance(schema.get(key), dict):
            out[key] = _closed(schema[key])
    if _names_all(schema):
        out["additionalProperties"] = False
    return out


def _names_all(schema: dict[str, Any]) -> bool:
    """Whether an object may have no properties but the named ones."""
    names, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(names, dict) or not names or any(key in schema for key in _OPEN):
        return False
    return isinstance(required, list) and all(isinstance(name, str) and name in names for name in required)
