r"""Parses calls written as `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>` among text."""

import json
import logging
import re

from router.text.grammar import Marks
from router.text.parts import CallEnd, CallPart, CallStart, Part, Text, held_back
from router.text.tool_parser import ToolParser
from router.text.tools.call_json import Called, partly, read
from router.text.tools.json_scan import JsonScan

_log = logging.getLogger(__name__)
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_LINE_END = "\n" + _CLOSE
# Matches a call up to the beginning of its arguments, with keys in the format's order. From there on it can be
# streamed.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*\{')
# Text that may be the call's own end, if it can't be told from its arguments.
_TAIL = re.compile(r"[}\s]*\Z")


class Hermes(ToolParser):
    """Streams a call's name when its arguments begin, and the arguments as they form.

    Mistakes of models are repaired if only one meaning is possible (`call_json` lists them); everything else between
    the markers is text. If a call's arguments break after their beginning was streamed, they are passed on as written.
    Markers, and white space between a call and text, are never shown.
    """

    markers = (_OPEN, _CLOSE)
    trigger = _OPEN
    between = "\n"

    @classmethod
    def call(cls, name: str, arguments: str, marks: Marks) -> str:
        head = marks.literal(f'\n{{"name": {json.dumps(name)}, "arguments": ')
        tail = marks.literal("}\n" + _CLOSE)
        return f"{head} {arguments} {tail}"

    def __init__(self) -> None:
        self._mode = self._in_text
        self._held = ""  # text not examined yet, or maybe the beginning of a marker
        self._at = 0  # where `_held` begins in the output
        self._spaces: list[Text] = []  # white space that is shown only if text follows
        self._said = False
        self._calls = 0
        self._out: list[Part] = []

    def push(self, text: str, at: int = 0) -> list[Part]:
        if not self._held:
            self._at = at
        self._held += text
        while self._mode():
            pass
        return self._taken()

    def flush(self) -> list[Part]:
        if self._mode == self._in_text:
            self._say(self._held, self._at)
        elif self._mode == self._in_head:
            self._cut_head()
        elif self._mode in (self._in_arguments, self._in_broken):
            written = self._held[: len(self._held) - held_back(self._held, _CLOSE)]
            self._raw.append(written)
            self._argue(written)
            self._end_call(valid=False, cut=True)
        self._held = ""
        if not self._calls:
            self._out += self._spaces
        return self._taken()

    def _taken(self) -> list[Part]:
        out, self._out = self._out, []
        return out

    def _pass(self, count: int) -> str:
        """Take the first characters from `_held`."""
        passed, self._held = self._held[:count], self._held[count:]
        self._at += count
        return passed

    def _say(self, text: str, at: int) -> None:
        shown = text.rstrip()
        if self._calls and not self._said:
            begin = len(shown) - len(shown.lstrip())
            self._spaces, shown, text, at = [], shown[begin:], text[begin:], at + begin
        if shown:
            self._said = True
            self._out += [*self._spaces, Text(shown, at)]
            self._spaces = []
        if len(text) > len(shown):
            self._spaces.append(Text(text[len(shown) :], at + len(shown)))

    # Each mode takes what it can of `_held`, and returns whether another mode is next.

    def _in_text(self) -> bool:
        found = [(at, marker) for marker in self.markers if (at := self._held.find(marker)) >= 0]
        end, marker = min(found, default=(len(self._held), ""))
        if not found:
            end -= max(held_back(self._held, marker) for marker in self.markers)
        if end:
            at = self._at
            self._say(self._pass(end), at)
        self._pass(len(marker))
        if marker == _OPEN:
            self._mode = self._in_head
            self._scan = JsonScan()
            self._raw: list[str] = []
            self._raw_at = self._at
        return bool(found)

    def _in_head(self) -> bool:
        scan = self._scan
        while not scan.done and (piece := self._step()):
            self._raw.append(piece)
            if scan.depth == 2 and piece == "{" and (name := self._name()):
                self._start_call(name)
                self._argue("{")
                self._mode = self._in_arguments
                return True
        if scan.done:
            called = read("".join(self._raw))
            if called is None:
                self._break_off()
            else:
                self._whole_call(called)
        elif scan.broken:
            self._break_off()
        return scan.done or scan.broken

    def _in_arguments(self) -> bool:
        scan, written = self._scan, []
        while scan.depth > 1 and (piece := self._step()):
            self._raw.append(piece)
            # A raw line break within a string can only mean a line break.
            written.append(json.dumps(piece)[1:-1] if scan.in_string and piece < " " else piece)
        self._argue("".join(written))
        if scan.broken:
            self._mode = self._in_broken
        elif scan.depth == 1:
            self._end_call(valid=True)
            self._mode = self._in_tail
        else:
            return False
        return True

    def _in_tail(self) -> bool:
        while not self._scan.done and self._step():
            pass
        if self._scan.done or self._scan.broken:
            self._mode = self._in_close
            return True
        return False

    def _in_close(self) -> bool:
        rest = self._held.lstrip(" \t\r\n}")  # a surplus brace is dropped
        if rest.startswith(_CLOSE):
            self._pass(len(self._held) - len(rest) + len(_CLOSE))
        elif _CLOSE.startswith(rest):
            return False
        else:
            self._pass(len(self._held) - len(self._held.lstrip()))
        self._mode = self._in_text
        return True

    def _in_broken(self) -> bool:
        before, found, _ = self._held.partition(_CLOSE)
        if not found:
            before = before[: len(before) - held_back(before, _CLOSE)]
        tail = _TAIL.search(before)
        assert tail is not None
        self._raw.append(self._pass(len(before) if found else tail.start()))
        if not found:
            self._argue(before[: tail.start()])
            return False
        # The last brace is the call's own.
        self._argue(before.rstrip().removesuffix("}").rstrip())
        self._pass(len(_CLOSE))
        self._end_call(valid=False)
        self._mode = self._in_text
        return True

    def _step(self) -> str:
        """The characters that the scan takes next; "" if the JSON is broken or more must come first."""
        text, scan = self._held, self._scan
        if not text:
            return ""
        if scan.in_string and text[0] == "\n" and _LINE_END.startswith(text[: len(_LINE_END)]):
            # The format's end of a call counts even while a string is open.
            scan.broken = len(text) >= len(_LINE_END)
            return ""
        return self._pass(scan.step(text, 0))

    def _start_call(self, name: str) -> None:
        self._calls += 1
        self._out.append(CallStart(name))

    def _argue(self, text: str) -> None:
        if text:
            self._out.append(CallPart(text))

    def _end_call(self, *, valid: bool, cut: bool = False) -> None:
        if not valid:
            _log.warning("a tool call's arguments are not valid JSON; they are passed on as written")
        self._out.append(CallEnd(valid, "".join(self._raw).strip(), cut))

    def _whole_call(self, called: Called) -> None:
        self._start_call(called.name)
        self._argue(called.arguments)
        self._end_call(valid=True)
        self._mode = self._in_close

    def _cut_head(self) -> None:
        """The output ended before the arguments began: it is a call if its name is complete."""
        self._raw.append(self._pass(len(self._held)))
        called = partly("".join(self._raw))
        if called is None:
            self._break_off()
            return
        self._start_call(called.name)
        self._argue(called.arguments)
        self._end_call(valid=False, cut=True)

    def _name(self) -> str:
        head = _HEAD.fullmatch("".join(self._raw))
        called = read(f'{{"name": {head[1]}}}') if head else None
        return called.name if called is not None else ""

    def _break_off(self) -> None:
        _log.warning("a tool call is unreadable; it is passed on as text")
        self._mode = self._in_text
        self._say("".join(self._raw), self._raw_at)
