"""The interface of parsers of tool calls."""

from abc import ABC, abstractmethod
from typing import ClassVar

from router.text.grammar import Marks
from router.text.parts import Part


class ToolParser(ABC):
    """Separates calls from text in one sequence, as the text arrives.

    The joined parts do not depend on how the text is cut into pushes. Everything that is no call is `Text`: only
    markers and the white space around calls are dropped.
    """

    markers: ClassVar[tuple[str, ...]]  # shown even if they are special tokens
    trigger: ClassVar[str]  # begins each call; text never contains it
    between: ClassVar[str]  # separates two calls

    @classmethod
    @abstractmethod
    def call(cls, name: str, arguments: str, marks: Marks) -> str:
        """Lark for one call after its trigger. arguments: Lark for the JSON object of its arguments."""

    @abstractmethod
    def push(self, text: str, at: int = 0) -> list[Part]:
        """Push characters, and return the parts that are certain now. at: where the characters begin in the output."""

    @abstractmethod
    def flush(self) -> list[Part]:
        """Return the remaining parts at the sequence's end."""
