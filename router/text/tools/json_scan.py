"""Checks JSON by RFC 8259 as it arrives, and finds where an object ends or breaks.

Control characters are allowed in strings, though the RFC forbids them, because models write raw line breaks.
"""

import re

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_HEX = frozenset("0123456789abcdefABCDEF")
_WORDS = {"t": "true", "f": "false", "n": "null"}


class JsonScan:
    """The scan of one object. depth: open braces and brackets. done: it is complete. broken: it can't become valid."""

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self._mode = "object"
        self._open: list[str] = []  # the closing characters of what is open
        self._key = False  # whether the open string is a key
        self._left = ""  # the rest of a word such as `true`
        self._hex = 0  # digits that a \u escape still needs
        self._number: list[str] = []

    @property
    def in_string(self) -> bool:
        """Whether the next character belongs to a string or ends it."""
        return self._mode == "string"

    @property
    def depth(self) -> int:
        """The number of open braces and brackets."""
        return len(self._open)

    def step(self, text: str, at: int) -> int:
        """Take a character of `text[at:]`, or a run within a string; return the index after it, `at` if it breaks."""
        if self._mode == "string" and (plain := _PLAIN.match(text, at)):
            return plain.end()
        self._take(text[at])
        return at if self.broken else at + 1

    def _take(self, c: str) -> None:
        match self._mode:
            case "string":
                self._in_string(c)
            case "escape":
                self._in_escape(c)
            case "hex":
                self._in_hex(c)
            case "word":
                self._in_word(c)
            case "number":
                self._in_number(c)
            case _:
                self._between(c)

    def _in_string(self, c: str) -> None:
        if c == '"':
            self._mode = "colon" if self._key else "after"
        elif c == "\\":
            self._mode = "escape"

    def _in_escape(self, c: str) -> None:
        if c == "u":
            self._mode, self._hex = "hex", 4
        else:
            self._mode, self.broken = "string", c not in '"\\/bfnrt'

    def _in_hex(self, c: str) -> None:
        self._hex -= 1
        self.broken = c not in _HEX
        if not self._hex:
            self._mode = "string"

    def _in_word(self, c: str) -> None:
        self.broken = c != self._left[0]
        self._left = self._left[1:]
        if not self._left:
            self._mode = "after"

    def _in_number(self, c: str) -> None:
        if c in "+-.eE" or c.isdecimal():
            self._number.append(c)
        elif _NUMBER.fullmatch("".join(self._number)):
            self._mode = "after"
            self._between(c)
        else:
            self.broken = True

    def _between(self, c: str) -> None:
        mode = self._mode
        if c in " \t\n\r":
            return
        if mode in ("value", "first") and self._begin(c):
            return
        if mode == "object" and c == "{":
            self._begin(c)
        elif mode in ("key", "first key") and c == '"':
            self._mode, self._key = "string", True
        elif mode == "colon" and c == ":":
            self._mode = "value"
        elif mode == "after" and c == ",":
            self._mode = "key" if self._open[-1] == "}" else "value"
        elif mode in ("after", "first", "first key") and c == self._open[-1]:
            self._open.pop()
            self._mode = "after"
            self.done = not self._open
        else:
            self.broken = True

    def _begin(self, c: str) -> bool:
        if c == "{":
            self._open.append("}")
            self._mode = "first key"
        elif c == "[":
            self._open.append("]")
            self._mode = "first"
        elif c == '"':
            self._mode, self._key = "string", False
        elif c == "-" or (c.isascii() and c.isdigit()):
            self._mode, self._number = "number", [c]
        elif c in _WORDS:
            self._mode, self._left = "word", _WORDS[c][1:]
        else:
            return False
        return True
