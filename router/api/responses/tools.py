"""Functions a response may call, and the choice among them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from router.api.request import Tool, shown_tool
from router.api.responses.items import tag
from router.api.schema import Strict
from router.text.tools.form import OfferedFunction


def _no_own_tool(value: Any) -> Any:
    if value != "function":
        raise ValueError(f"{str(value)[:80]!r} is a tool the server would have to run: it runs none, only 'function'")
    return value


class FunctionTool(Strict):
    """A function the model may call. parameters: JSON Schema, shown to the model as it is.

    strict: calls are made of valid arguments alone; off unless it is asked for.
    """

    type: Annotated[Literal["function"], BeforeValidator(_no_own_tool)]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def lower(self, place: int) -> Tool:
        """In neutral form. place: among the request's tools."""
        at = f"tools[{place}].parameters"
        return shown_tool(OfferedFunction(self.name, self.parameters, at, strict=bool(self.strict)), self.description)

    def shown(self) -> dict[str, Any]:
        """As an answer repeats it."""
        return {**self.model_dump(), "strict": bool(self.strict)}


class NamedTool(Strict):
    """One function."""

    type: Annotated[Literal["function"], BeforeValidator(_no_own_tool)]
    name: str


class AllowedTools(Strict):
    """Only these of the tools are offered to the model."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=1024)


def _known_choice(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") not in (None, "allowed_tools"):
        _no_own_tool(value["type"])
    return value


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("#word")]
    | Annotated[NamedTool, Tag("#function")]
    | Annotated[AllowedTools, Tag("#allowed_tools")],
    Discriminator(lambda value: tag(value) if isinstance(value, dict | BaseModel) else "#word"),
    BeforeValidator(_known_choice),
]
