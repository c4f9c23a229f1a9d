"""The parts of an assistant's output, after markers are separated from text."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Text:
    """A further piece of the text for the user. at: where it begins in the output, in which it is contiguous."""

    text: str
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A further piece of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; the parts up to the next `CallEnd` belong to it."""

    name: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """A further piece of the call's arguments, exactly as the model wrote them."""

    arguments: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call has ended.

    valid: its arguments are one JSON object. raw: the text between its markers. cut: the output ended within it.
    """

    valid: bool
    raw: str
    cut: bool = False


Part = Text | Reasoning | CallStart | CallPart | CallEnd


def held_back(text: str, marker: str) -> int:
    """The number of characters at the end of `text` that may begin `marker`."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
