"""Shields a chat template from clients' texts, so that clients can't write the markers that structure a conversation.

A chat template joins its own markers and clients' texts to one string. Before rendering, stand-ins replace the
characters in clients' texts with which a marker begins or ends; so every marker in the string is the template's. After
the string is cut at its markers, the original characters are put back.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

Turns = list[dict[str, Any]]

# Stand-ins are letters that hardly anybody writes: Ogham, then rare Chinese for requests that contain Ogham. They are
# letters because templates' operations on texts (trimming, case, escapes of Python and JSON) leave these unchanged.
STAND_INS = "\u1681-\u169a\U00020000-\U0002a6cf"
_RARE = (range(0x1681, 0x169B), range(0x20000, 0x2A6D0))
# Words of tools and JSON Schema that templates compare with. A text that is one of them passes unchanged.
_WORDS = frozenset(
    (
        *("type", "function", "name", "description", "parameters", "properties", "required", "items", "enum"),
        *("default", "title", "format", "anyOf", "oneOf", "allOf"),
        *("object", "array", "string", "number", "integer", "boolean", "null"),
    )
)


@dataclass(frozen=True, slots=True)
class Exact:
    """Replaces a message's content by the packed token ids that the prompt has for it."""

    packed: bytes


@dataclass(frozen=True, slots=True)
class Shielded:
    """A template's shielded input, and the shield that restores its output.

    exact: packed ids by their number in the text.
    """

    messages: Turns
    tools: Turns | None
    variables: dict[str, Any]
    exact: list[bytes]
    shield: "Shield"


class _Taken(Exception):
    """A text contains a stand-in."""


class Shield:
    """The stand-ins for one set of markers. avoid: characters that the template or the request contains."""

    def __init__(self, markers: Sequence[str], avoid: Iterable[str] = ()) -> None:
        edges = sorted({c for marker in markers for c in (marker[0], marker[-1])})
        avoid = set(avoid)
        free = list(islice((c for c in map(chr, chain(*_RARE)) if c not in avoid), len(edges) + 2))
        if len(free) < len(edges) + 2:
            raise ValueError("the messages hold every one of the rare letters that stand in for markers' characters")
        self._markers = markers
        self._avoid = avoid
        self._edges = tuple(zip(edges, free[2:], strict=True))
        # Appended to a text that a template could complete to a marker (`role` between a template's `<` and `>`).
        self._apart = free[0]
        # Encloses the number of exact ids in the text.
        self._number = free[1]
        self._numbered = re.compile(f"{free[1]}([0-9]+){free[1]}")
        self._used = frozenset(free)
        self._inside = "\0".join(marker[1:-1].casefold() for marker in markers)
        self._longest = max(map(len, markers), default=0)

    def over(self, messages: Turns, tools: Turns | None, variables: dict[str, Any]) -> "Shielded":
        """Shield a template's input: all texts except roles, and the parameter names of tools."""
        try:
            return self._over(messages, tools, variables)
        except _Taken:
            avoid = self._avoid.union(*map(_characters, (messages, tools, variables)))
            return Shield(self._markers, avoid)._over(messages, tools, variables)

    def plain(self, text: str) -> str:
        """Restore the text that the clients and the template wrote."""
        if text.isascii():
            return text
        for character, stand_in in self._edges:
            text = text.replace(stand_in, character)
        return text.replace(self._apart, "")

    def split(self, text: str) -> list[str]:
        """Split into text, which is still shielded, and numbers of exact ids, alternately."""
        return self._numbered.split(text) if self._number in text else [text]

    def _over(self, messages: Turns, tools: Turns | None, variables: dict[str, Any]) -> "Shielded":
        exact: list[bytes] = []
        return Shielded(
            [{k: v if k == "role" else self._ours(v, exact) for k, v in message.items()} for message in messages],
            None if tools is None else [self._theirs(tool) for tool in tools],
            {name: self._theirs(value) for name, value in variables.items()},
            exact,
            self,
        )

    def _ours(self, value: Any, exact: list[bytes]) -> Any:
        """Shield a part of a message whose keys are the API's."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Exact):
            exact.append(value.packed)
            return f"{self._number}{len(exact) - 1}{self._number}"
        if isinstance(value, dict):
            return {key: self._ours(item, exact) for key, item in value.items()}
        return [self._ours(item, exact) for item in value] if isinstance(value, list) else value

    def _theirs(self, value: Any) -> Any:
        """Shield JSON whose keys are the client's."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {self._text(key): self._theirs(item) for key, item in value.items()}
        return [self._theirs(item) for item in value] if isinstance(value, list) else value

    def _text(self, text: str) -> str:
        if not text.isascii() and any(c in text for c in self._used):
            raise _Taken
        inner = text.strip().casefold() if len(text) <= self._longest else ""
        if inner and inner in self._inside and text not in _WORDS:
            body = text.rstrip()
            text = body + self._apart + text[len(body) :]
        for character, stand_in in self._edges:
            text = text.replace(character, stand_in)
        return text


def _characters(value: Any) -> set[str]:
    if isinstance(value, str):
        return set(value)
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_characters, parts))
