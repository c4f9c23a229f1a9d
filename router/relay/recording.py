"""Records the token ids of an answer, so that the next turn's prompt can contain the same tokens."""

import array
import json
from collections.abc import Callable, Sequence

from router.text.exact import Said
from router.text.parts import CallEnd, CallPart, CallStart, Part, Reasoning, Text


class Recording:
    """The recording of one choice.

    keep: called once with the answer and its packed ids. values: clients send calls' arguments back as JSON values, not
    as the model's text.

    Three kinds of answers are not recorded: those with reasoning, which templates leave out of earlier turns; those
    that the router cut before the model was done, at a stop string or after the only call; and those with an invalid
    call.
    """

    __slots__ = ("_calls", "_keep", "_text", "_values", "ids")

    def __init__(self, keep: Callable[[Said, bytes], None], *, values: bool) -> None:
        self._keep: Callable[[Said, bytes], None] | None = keep
        self._values = values
        self.ids = array.array("i")
        self._text: list[str] = []
        self._calls: list[tuple[str, list[str]]] = []

    def took(self, text: str, events: Sequence[Part]) -> None:
        """Record a further piece of the answer, as the client got it."""
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
        """End the recording. stopped: whether the last id is an end token. cut: whether the router cut the answer."""
        keep, self._keep = self._keep, None
        if keep is None or cut:
            return
        calls = tuple((name, self._returned("".join(arguments))) for name, arguments in self._calls)
        ids = self.ids[:-1] if stopped else self.ids
        if ids:
            keep(Said("".join(self._text), calls), ids.tobytes())

    def _returned(self, arguments: str) -> str:
        return json.dumps(json.loads(arguments), ensure_ascii=False) if self._values else arguments
