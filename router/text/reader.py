"""Separates an assistant's output into parts: first reasoning, if there is any, then text and calls."""

from router.text.parts import CallEnd, Part, Reasoning, Text, held_back
from router.text.tool_parser import ToolParser

_OPEN, _CLOSE = "<think>", "</think>"


class Reader:
    """The reader of one sequence. The joined parts do not depend on how the text is cut into pushes.

    calls: the parser of calls; None if none are expected. thinking: the prompt ends within the reasoning. single: the
    first call ends the sequence.
    """

    def __init__(self, calls: ToolParser | None, *, thinking: bool = False, single: bool = False) -> None:
        self.markers = (_OPEN, _CLOSE, *(calls.markers if calls is not None else ()))
        self.ended = False  # whether the rest of the output is ignored
        self._calls = calls
        self.single = single
        self._mode = self._thought if thinking else self._begin
        self._held = ""
        self._end = 0  # characters pushed; the text that a mode passes on ends there
        self._space = True  # whether white space is dropped until another character comes

    def push(self, text: str) -> list[Part]:
        """Push characters, and return the parts that are certain now."""
        self._end += len(text)
        return self._until_end(self._mode(text))

    def flush(self) -> list[Part]:
        """Return the remaining parts at the sequence's end."""
        held, self._held = self._held, ""
        if self._mode == self._thought:
            held = held.rstrip()
            return [Reasoning(held)] if held else []
        out = self._rest(held) if held else []
        if self._calls is not None:
            out += self._calls.flush()
        return self._until_end(out)

    def _begin(self, text: str) -> list[Part]:
        self._held += text
        begun = self._held.lstrip()
        if begun.startswith(_OPEN):
            self._mode, self._held = self._thought, ""
            return self._thought(begun[len(_OPEN) :])
        if _OPEN.startswith(begun):
            return []
        text, self._held, self._mode = self._held, "", self._rest
        return self._rest(text)

    def _thought(self, text: str) -> list[Part]:
        text = self._held + text
        if self._space:
            text = text.lstrip()
            self._space = not text
        before, found, after = text.partition(_CLOSE)
        keep = len(before) if found else len(before) - held_back(before, _CLOSE)
        shown = before[:keep].rstrip()
        self._held = "" if found else before[len(shown) :]
        out: list[Part] = [Reasoning(shown)] if shown else []
        if found:
            self._mode, self._space = self._after, True
            out += self._after(after)
        return out

    def _after(self, text: str) -> list[Part]:
        text = text.lstrip()
        if not text:
            return []
        self._mode = self._rest
        return self._rest(text)

    def _rest(self, text: str) -> list[Part]:
        at = self._end - len(text)
        return [Text(text, at)] if self._calls is None else self._calls.push(text, at)

    def _until_end(self, parts: list[Part]) -> list[Part]:
        if self.single:
            for i, part in enumerate(parts):
                if isinstance(part, CallEnd):
                    self.ended = True
                    return parts[: i + 1]
        return parts
