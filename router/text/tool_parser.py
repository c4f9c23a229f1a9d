"""What a parser of tool calls is to the router."""

from abc import ABC, abstractmethod
from typing import ClassVar

from router.text.grammar import Marks
from router.text.parts import Part


class ToolParser(ABC):
    """Tells one sequence's calls from its text, as the text comes.

    However a text is cut into pushes, the parts joined are the same. What is not a call is `Text`, whole: nothing
    the model wrote is lost but markers and the white space around calls.
    """

    markers: ClassVar[tuple[str, ...]]  # shown even where the tokenizer holds them to be special
    trigger: ClassVar[str]  # what each call begins with, and text does not contain
    between: ClassVar[str]  # what stands between a call and the next

    @classmethod
    @abstractmethod
    def call(cls, name: str, arguments: str, marks: Marks) -> str:
        """Lark for one call after its trigger; `arguments` is Lark for the JSON object they are."""

    @abstractmethod
    def push(self, text: str, at: int = 0) -> list[Part]:
        """What these characters make certain. at: where they begin in the output, just behind those before."""

    @abstractmethod
    def flush(self) -> list[Part]:
        """What still waits, at the sequence's end."""
