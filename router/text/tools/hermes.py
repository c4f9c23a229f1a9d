r"""Calls as `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`, one after another among text."""

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
# A call up to where its arguments begin, keys in the order of the format: from there on it can be streamed.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*\{')
# What may be the call's own end where its arguments can't be told from it.
_TAIL = re.compile(r"[}\s]*\Z")


class Hermes(ToolParser):
    """A call's name leaves when its arguments begin, and they leave as they form.

    One rule for what models get wrong: what can be read in one way only is read (`call_json` lists it); all else
    between the markers is text, whole. A call whose arguments break once their beginning has left keeps all of them
    as written. Markers are never shown, nor is white space between a call and text.
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
        self._held = ""  # not looked at yet, or maybe a marker's beginning
        self._at = 0  # where `_held` begins in the output
        self._spaces: list[Text] = []  # shown only if text follows
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
        """The first characters of `_held`, which are done with."""
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

    # Each mode takes what it can of `_held` and says whether another has its turn.

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
            # A line break written as it is, within a string: it can only be meant as one.
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
        rest = self._held.lstrip(" \t\r\n}")  # a brace too many is nobody's
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
        """What the scan takes next; "" if it is broken or must see more first."""
        text, scan = self._held, self._scan
        if not text:
            return ""
        if scan.in_string and text[0] == "\n" and _LINE_END.startswith(text[: len(_LINE_END)]):
            # The format's own end of a call, though a string is still open.
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
            _log.warning("a tool call's arguments are no JSON; they are passed on as written")
        self._out.append(CallEnd(valid, "".join(self._raw).strip(), cut))

    def _whole_call(self, called: Called) -> None:
        self._start_call(called.name)
        self._argue(called.arguments)
        self._end_call(valid=True)
        self._mode = self._in_close

    def _cut_head(self) -> None:
        """The output ended before the arguments began: a call as soon as its name is whole."""
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
