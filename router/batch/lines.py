"""A batch's input: JSON lines of `custom_id`, `method`, `url` and `body`. All of it blocks: call it in a thread."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from router.store.batches import BatchFault

# The number of an input's errors that its batch reports at most.
_MOST_ERRORS = 100


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    method: str
    url: str
    body: msgspec.Raw


_decode = msgspec.json.Decoder(_Entry).decode


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch.

    number: its index among the lines that are not empty. body: its JSON, not yet validated.
    """

    number: int
    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of checking an input. errors: as the API lists them; a batch with any of them can't be run."""

    total: int
    errors: tuple[BatchFault, ...]


def read(path: Path) -> Iterator[Line]:
    """The lines of an input in which `check` found no error."""
    for number, (_, raw) in enumerate(_raw_lines(path, None)):
        entry = _decode(raw)
        yield Line(number, entry.custom_id, bytes(entry.body))


def check(path: Path, endpoint: str, most_lines: int, line_bytes: int) -> Checked:
    """Check that each line is a request to `endpoint` with an id of its own. Bodies are validated when they run."""
    total = 0
    errors: list[BatchFault] = []
    seen: set[str] = set()
    for at, raw in _raw_lines(path, line_bytes):
        total += 1
        try:
            if total > most_lines:
                raise _Fault("too_many_lines", f"the input has more than {most_lines} requests")
            if len(raw) > line_bytes:
                raise _Fault("line_too_large", f"the line exceeds {line_bytes} bytes")
            _check(_entry(raw), endpoint, seen)
        except _Fault as fault:
            errors.append(fault.as_listed(at))
            if total > most_lines or len(errors) == _MOST_ERRORS:
                break
    if total == 0:
        errors.append(_Fault("empty_file", "the input has no request").as_listed(None))
    return Checked(total, tuple(errors))


class _Fault(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        self._listed: BatchFault = {"code": code, "message": message, "param": param, "line": None}

    def as_listed(self, line: int | None) -> BatchFault:
        return {**self._listed, "line": line}


def _entry(raw: bytes) -> _Entry:
    try:
        return _decode(raw)
    except msgspec.ValidationError as error:
        raise _Fault("invalid_request_line", f"the line is no request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _Fault("invalid_json_line", f"the line is not JSON: {error}") from None


def _check(entry: _Entry, endpoint: str, seen: set[str]) -> None:
    if entry.method != "POST":
        raise _Fault("invalid_method", f"'method' must be POST, not {entry.method[:20]!r}", "method")
    if entry.url != endpoint:
        raise _Fault("mismatched_url", f"'url' {entry.url[:80]!r} is not the batch's endpoint {endpoint!r}", "url")
    if not bytes(entry.body).startswith(b"{"):
        raise _Fault("invalid_request_line", "'body' must be a JSON object", "body")
    if entry.custom_id in seen:
        name = entry.custom_id[:80]
        raise _Fault("duplicate_custom_id", f"'custom_id' {name!r} is already the id of an earlier line", "custom_id")
    seen.add(entry.custom_id)


def _raw_lines(path: Path, most: int | None) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their numbers in the file from 1. A line longer than `most` is cut."""
    with open(path, "rb") as file:
        at = 0
        while raw := file.readline(-1 if most is None else most + 2):
            at += 1
            if most is not None and not raw.endswith(b"\n"):
                _skip_rest(file.readline, most)
            if content := raw.strip():
                yield at, content


def _skip_rest(readline: Callable[[int], bytes], piece: int) -> None:
    while (rest := readline(piece)) and not rest.endswith(b"\n"):
        pass
