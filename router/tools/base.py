"""What a parser of tool calls is to the router."""

from abc import ABC, abstractmethod
from typing import ClassVar

from router.parts import Part


class ToolParser(ABC):
    """Tells one sequence's calls from its text, as the text comes.

    However a text is cut into pushes, the parts joined are the same. What is not a call is `Text`, whole: nothing
    the model wrote is lost but the markers of calls and the white space around them.
    """

    markers: ClassVar[tuple[str, ...]]  # shown even where the tokenizer holds them to be special

    @abstractmethod
    def push(self, text: str) -> list[Part]:
        """What these characters make certain."""

    @abstractmethod
    def flush(self) -> list[Part]:
        """What still waits, at the sequence's end."""
