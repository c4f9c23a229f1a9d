"""Parsers of tool calls by name. To add one, add a file beside these and a line here."""

from router.text.tool_parser import ToolParser
from router.text.tools.hermes import Hermes

__all__ = ["PARSERS", "ToolParser", "tool_parser"]
PARSERS: dict[str, type[ToolParser]] = {"qwen25": Hermes, "hermes": Hermes}


def tool_parser(name: str) -> type[ToolParser]:
    """The parser with this name; ValueError if there is none."""
    if name not in PARSERS:
        raise ValueError(f"tool_parser {name!r} is unknown: use one of {', '.join(sorted(PARSERS))}")
    return PARSERS[name]
