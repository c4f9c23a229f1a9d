"""An answer's token ids and what it said, so that its next turn can read the very tokens."""

import array
import json
from collections.abc import Callable, Sequence

from router.text.exact import Said
from router.text.parts import CallEnd, CallPart, CallStart, Part, Reasoning, Text


class Recording:
    """One choice's.

    keep: is called once with what was said and the packed ids. values: calls' arguments come back as JSON values, which
    are written anew, not as the model's text.

    Nothing is kept of an answer that has reasoning, which templates leave out of earlier turns; of one that the router
    cut, at a stop string or behind its only call, where the model was not done; and of one with a call that is no call.
    """

    __slots__ = ("_calls", "_keep", "_text", "_values", "ids")

    def __init__(self, keep: Callable[[Said, bytes], None], *, values: bool) -> None:
        self._keep: Callable[[Said, bytes], None] | None = keep
        self._values = values
        self.ids = array.array("i")
        self._text: list[str] = []
        self._calls: list[tuple[str, list[str]]] = []

    def took(self, text: str, events: Sequence[Part]) -> None:
        """The client is given so much more."""
        if text:
            self._text.append(text)
        for part in events:
            match part:
                case Text(more):
                    self._text.append(more)
                case CallStart(name):
                    self._calls.append((name, []))
                case CallPart(arguments):
                    self._calls[-1][1].append(arguments)
                case CallEnd(valid=False) | Reasoning():
                    self._keep = None

    def end(self, *, stopped: bool, cut: bool) -> None:
        """All is taken. stopped: the last id is of a token that ended it. cut: by the router."""
        keep, self._keep = self._keep, None
        if keep is None or cut:
            return
        calls = tuple((name, self._returned("".join(arguments))) for name, arguments in self._calls)
        ids = self.ids[:-1] if stopped else self.ids
        if ids:
            keep(Said("".join(self._text), calls), ids.tobytes())

    def _returned(self, arguments: str) -> str:
        return json.dumps(json.loads(arguments), ensure_ascii=False) if self._values else arguments
