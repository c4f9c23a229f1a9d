"""Decodes token ids to text as they arrive. The text does not depend on the steps in which they arrive."""

import codecs
from collections.abc import Sequence

from router.text.tokenizer import Tokenizer


class Detokenizer:
    """The detokenizer of one sequence. Bytes of an incomplete character wait for the next token.

    markers: special tokens that are shown nevertheless.
    """

    def __init__(self, tokenizer: Tokenizer, markers: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._table = tokenizer.showing(markers) if markers else tokenizer.visible
        self._shown_ids = tokenizer.special_among(markers) if markers else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # Used if only the tokenizer can join tokens: the tokens since the last text but one, of which `_shown` are
        # shown.
        self._window: list[int] = []
        self._shown = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens add."""
        if self._table is None:
            return "".join(self._push_window(i) for i in token_ids)
        table = self._table
        try:
            data = table[token_ids[0]] if len(token_ids) == 1 else b"".join([table[i] for i in token_ids])
        except IndexError:  # the model has ids that the tokenizer lacks
            data = b"".join([table[i] for i in token_ids if i < len(table)])
        return self._utf8.decode(data)

    def shows(self, token_id: int) -> bool:
        """Whether the token is shown: any token except hidden special ones."""
        if self._table is not None:
            return token_id < len(self._table) and bool(self._table[token_id])
        return token_id in self._shown_ids or token_id not in self._tokenizer.special_ids

    def flush(self) -> str:
        """Return the rest at the sequence's end; incomplete characters become U+FFFD."""
        if self._table is not None:
            return self._utf8.decode(b"", final=True)
        decode = self._tokenizer.decode
        return decode(self._window)[len(decode(self._window[: self._shown])) :]

    def _push_window(self, token_id: int) -> str:
        if token_id in self._shown_ids:
            # It joins with neither neighbour: the text after it is decoded separately.
            before, self._window, self._shown = self.flush(), [], 0
            return before + self._tokenizer.piece(token_id).text
        if token_id in self._tokenizer.special_ids:
            return ""
        self._window.append(token_id)
        decode = self._tokenizer.decode
        before = decode(self._window[: self._shown])
        text = decode(self._window)
        if len(text) <= len(before) or text.endswith("\ufffd"):
            return ""
        # The next text is the difference from this one, because how two tokens join depends on both.
        del self._window[: self._shown]
        self._shown = len(self._window)
        return text[len(before) :]


class StopStrings:
    """Finds the first of `strings` in a text that arrives in pieces, and withholds all of it.

    found: the string found.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.found: str | None = None
        self._strings = tuple(strings)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that certainly precedes any stop string, and whether one was found.

        After one was found, push nothing more.
        """
        text = self._held + text
        # Take the match that ends first, as if the text arrived in single characters.
        found = [(at + len(s), at) for s in self._strings for at in [text.find(s)] if at >= 0]
        if found:
            self._held = ""
            end, at = min(found)
            self.found = text[at:end]
            return text[:at], True
        keep = 0
        for string in self._strings:
            for size in range(min(len(string) - 1, len(text)), keep, -1):
                if text.endswith(string[:size]):
                    keep = size
                    break
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """Return the held text at the sequence's end."""
        held, self._held = self._held, ""
        return held
