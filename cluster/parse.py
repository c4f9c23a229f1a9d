"""Reads settings into a `ClusterConfig`: layers of YAML, flags and arguments, and one line for each error."""

import difflib
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cluster.config import ClusterConfig, ConfigError


def parse(*layers: Mapping[str, Any]) -> ClusterConfig:
    """Settings from YAML (nested) or a command line (`decode.tp=2`, text), later layers over earlier ones.

    ConfigError names what is wrong.
    """
    settings: dict[str, Any] = {}
    for layer in layers:
        _lay(settings, _nested(layer))
    try:
        return ClusterConfig.model_validate(settings)
    except ValidationError as error:
        raise ConfigError("\n".join(_line(item) for item in error.errors(include_url=False))) from None


def _nested(args: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys become sections. Overrides have no schema, so their text is read as YAML."""
    nested: dict[str, Any] = {}
    for key, value in args.items():
        path = str(key).split(".")
        read = path[0] == "model_overrides" and isinstance(value, str)
        branch = _yaml(str(key), value) if read else value
        for part in reversed(path):
            branch = {part: branch}
        _lay(nested, branch)
    return nested


def _lay(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Merge settings over others, section by section."""
    for key, value in over.items():
        below = under.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            _lay(below, value)
        else:
            under[key] = dict(value) if isinstance(value, Mapping) else value


def _yaml(path: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None


def _line(error: Any) -> str:
    """One pydantic error as `path: what is wrong`."""
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{path}: unknown setting; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if not path:
        return str(message)
    return f"{path}: {message[0].lower()}{message[1:]}, got {error['input']!r}"


def _fields(path: tuple[Any, ...]) -> list[str]:
    section: type[BaseModel] = ClusterConfig
    for part in path:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type)
        section = annotation
    return list(section.model_fields)
