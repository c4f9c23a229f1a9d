"""Token ids to text as they come: the same text in whatever steps they come."""

import codecs
from collections.abc import Sequence

from router.text.tokenizer import Tokenizer


class Detokenizer:
    """One sequence's text. Bytes that do not make a character yet wait for the next token.

    markers: special tokens that are shown all the same.
    """

    def __init__(self, tokenizer: Tokenizer, markers: tuple[str, ...] = ()) -> None:
        self._tokenizer = tokenizer
        self._table = tokenizer.showing(markers) if markers else tokenizer.visible
        self._shown_ids = tokenizer.special_among(markers) if markers else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # Where only the tokenizer can join tokens: those since the last but one text, of which `_shown` are out.
        self._window: list[int] = []
        self._shown = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """The text these tokens add."""
        if self._table is None:
            return "".join(self._push_window(i) for i in token_ids)
        table = self._table
        try:
            data = table[token_ids[0]] if len(token_ids) == 1 else b"".join([table[i] for i in token_ids])
        except IndexError:  # ids the model has and the tokenizer has not
            data = b"".join([table[i] for i in token_ids if i < len(table)])
        return self._utf8.decode(data)

    def shows(self, token_id: int) -> bool:
        """Whether the token is part of the text: not one of those special tokens that are not shown."""
        if self._table is not None:
            return token_id < len(self._table) and bool(self._table[token_id])
        return token_id in self._shown_ids or token_id not in self._tokenizer.special_ids

    def flush(self) -> str:
        """What still waits, at the sequence's end; incomplete characters become U+FFFD."""
        if self._table is not None:
            return self._utf8.decode(b"", final=True)
        decode = self._tokenizer.decode
        return decode(self._window)[len(decode(self._window[: self._shown])) :]

    def _push_window(self, token_id: int) -> str:
        if token_id in self._shown_ids:
            # It joins with neither neighbour: the text starts anew behind it.
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
        # The next text is the difference to this one's: what joins two tokens depends on both.
        del self._window[: self._shown]
        self._shown = len(self._window)
        return text[len(before) :]


class StopStrings:
    """Finds the first of `strings` in a text that comes in pieces, and lets out nothing of it. found: which it was."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.found: str | None = None
        self._strings = tuple(strings)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is certainly before any stop string, and whether one was found (then push nothing more)."""
        text = self._held + text
        # The match that ends first, as if the text had come by single characters.
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
        """The held text, at the sequence's end."""
        held, self._held = self._held, ""
        return held
