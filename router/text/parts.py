"""What an assistant's output is made of, once markers are told from text."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Text:
    """More of what is said to the user. at: where it begins in the output, which has it in one piece."""

    text: str
    at: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what is thought before the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins; what follows up to its `CallEnd` is its own."""

    name: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """More of the call's arguments, exactly as the model wrote them."""

    arguments: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call is over. valid: its arguments are one JSON object. raw: what stands between its markers, as written.

    cut: the output ended within it.
    """

    valid: bool
    raw: str
    cut: bool = False


Part = Text | Reasoning | CallStart | CallPart | CallEnd


def held_back(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:size]):
            return size
    return 0
