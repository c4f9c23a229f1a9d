r"""Calls as `<tool_call>\n{"name": …, "arguments": {…}}\n</tool_call>`, one after another among text."""

import json
import logging
import re

from router.text.grammar import Marks
from router.text.parts import CallEnd, CallPart, CallStart, Part, Text, held_back
from router.text.tool_parser import ToolParser
from router.text.tools.json_scan import JsonScan

_log = logging.getLogger(__name__)
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
# A call up to where its arguments begin, keys in the order of the format: from there on it can be streamed.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*\{')


class Hermes(ToolParser):
    """A call's name leaves when its arguments begin, and they leave as they form.

    A call that breaks before is text. One that breaks within its arguments keeps all that was written up to the
    end marker as arguments: their beginning has left already. White space between a call and text is not shown.
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
        self._space = ""  # shown only if text follows
        self._said = False
        self._calls = 0
        self._out: list[Part] = []

    def push(self, text: str) -> list[Part]:
        self._held += text
        while self._mode():
            pass
        return self._taken()

    def flush(self) -> list[Part]:
        held, self._held = self._held, ""
        if self._mode == self._in_text:
            self._say(held)
        elif self._mode == self._in_head:
            self._break_off()
        elif self._mode in (self._in_arguments, self._in_broken):
            self._raw.append(held)
            self._argue(held)
            self._end_call(valid=False, cut=True)
        if not self._calls:
            self._out.append(Text(self._space))
        return [p for p in self._taken() if p != Text("")]

    def _taken(self) -> list[Part]:
        out, self._out = self._out, []
        return out

    def _say(self, text: str) -> None:
        shown = (self._space + text).rstrip()
        if not shown:
            self._space += text
            return
        self._space = (self._space + text)[len(shown) :]
        if self._calls and not self._said:
            shown = shown.lstrip()
        self._said = True
        self._out.append(Text(shown))

    # Each mode takes what it can of `_held` and says whether another has its turn.

    def _in_text(self) -> bool:
        before, found, after = self._held.partition(_OPEN)
        if not found:
            keep = len(before) - held_back(before, _OPEN)
            before, after = before[:keep], before[keep:]
        if before:
            self._say(before)
        self._held = after
        if found:
            self._mode = self._in_head
            self._scan = JsonScan()
            self._raw = [_OPEN]
        return bool(found)

    def _in_head(self) -> bool:
        text, at, scan = self._held, 0, self._scan
        while at < len(text) and not scan.done:
            begun = at
            at = scan.step(text, at)
            if scan.broken:
                break
            self._raw.append(text[begun:at])
            if scan.depth == 2 and text[begun] == "{" and (name := self._name()):
                self._held = text[at:]
                self._start_call(name)
                self._argue("{")
                self._mode = self._in_arguments
                return True
        self._held = text[at:]
        if scan.done:
            self._judge()
        elif scan.broken:
            self._break_off()
        return scan.done or scan.broken

    def _in_arguments(self) -> bool:
        text, at, scan = self._held, 0, self._scan
        while at < len(text) and scan.depth > 1 and not scan.broken:
            at = scan.step(text, at)
        self._held = text[at:]
        self._raw.append(text[:at])
        self._argue(text[:at])
        if scan.broken:
            self._mode = self._in_broken
        elif scan.depth == 1:
            self._end_call(valid=True)
            self._mode = self._in_tail
        else:
            return False
        return True

    def _in_tail(self) -> bool:
        text, at, scan = self._held, 0, self._scan
        while at < len(text) and not (scan.done or scan.broken):
            at = scan.step(text, at)
        self._held = text[at:]
        if scan.done or scan.broken:
            self._mode = self._in_close
            return True
        return False

    def _in_close(self) -> bool:
        self._held = self._held.lstrip()
        if not self._held.startswith(_CLOSE) and _CLOSE.startswith(self._held):
            return False
        self._held = self._held.removeprefix(_CLOSE)
        self._mode = self._in_text
        return True

    def _in_broken(self) -> bool:
        before, found, after = self._held.partition(_CLOSE)
        if not found:
            keep = len(before) - held_back(before, _CLOSE)
            before, after = before[:keep], before[keep:]
        self._raw.append(before + found)
        self._argue(before)
        self._held = after
        if found:
            self._end_call(valid=False)
            self._mode = self._in_text
        return bool(found)

    def _start_call(self, name: str) -> None:
        self._calls += 1
        self._out.append(CallStart(name))

    def _argue(self, text: str) -> None:
        if text:
            self._out.append(CallPart(text))

    def _end_call(self, *, valid: bool, cut: bool = False) -> None:
        if not valid:
            _log.warning("a tool call's arguments are no JSON; they are passed on as written")
        self._out.append(CallEnd(valid, "".join(self._raw), cut))

    def _name(self) -> str:
        head = _HEAD.fullmatch("".join(self._raw[1:]))
        return _usable(json.loads(head[1])) if head else ""

    def _judge(self) -> None:
        """The whole object of a call whose keys came in another order."""
        try:
            call = json.loads("".join(self._raw[1:]))
        except (ValueError, RecursionError):
            call = {}
        name, arguments = _usable(call.get("name")), call.get("arguments", {})
        if not name or not isinstance(arguments, dict):
            self._break_off()
            return
        self._start_call(name)
        self._argue(json.dumps(arguments))
        self._end_call(valid=True)
        self._mode = self._in_close

    def _break_off(self) -> None:
        _log.warning("a tool call is broken; it is passed on as text")
        self._mode = self._in_text
        self._say("".join(self._raw))


def _usable(name: object) -> str:
    return name if isinstance(name, str) and name.isprintable() else ""
