"""Tools that a response may call, and the choice among them.

The model calls only functions. It sees a tool of another kind that the client runs as a function, and its calls become
items of that kind again (`Origin`). Tools that the server would have to run are left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from router.api.request import Tool, shown_tool
from router.api.responses.items import tag
from router.api.schema import Strict, meaningless
from router.text.tools.form import OfferedFunction

_NAME = r"^[a-zA-Z0-9_-]{1,128}$"
_INPUT: dict[str, Any] = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
_SHELL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}, "description": "the program and its arguments"},
        "working_directory": {"type": "string"},
        "timeout_ms": {"type": "integer"},
    },
    "required": ["command"],
}
SHELL = "local_shell"


@dataclass(frozen=True, slots=True)
class Origin:
    """The client's tool behind a function of the model. name, namespace: as the client named it."""

    kind: Literal["function", "custom", "local_shell"]
    name: str
    namespace: str | None = None


class FunctionTool(Strict):
    """A function that the model may call. `parameters` is a JSON Schema, which the model sees unchanged.

    With `strict` the arguments of calls are always valid; by default it is off.
    """

    type: Literal["function"]
    name: str = Field(pattern=_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = meaningless(None, exclude=True)  # chat templates do not show it
    # Only these values are accepted: the model calls the tool, and sees it from the start.
    allowed_callers: list[Literal["direct"]] | None = Field(None, min_length=1, max_length=1, exclude=True)
    defer_loading: Literal[False] | None = Field(None, exclude=True)

    def lower(self, at: str, namespace: str | None = None) -> Iterator[Tool]:
        """Lower to neutral tools. at: the tool's path in the request."""
        name = function_name(self.name, namespace)
        function = OfferedFunction(name, self.parameters, f"{at}.parameters", strict=bool(self.strict))
        yield shown_tool(function, self.description)

    def shown(self) -> dict[str, Any]:
        """As an answer repeats it."""
        return {**self.model_dump(), "strict": bool(self.strict)}


class TextInput(Strict):
    """Free text."""

    type: Literal["text"]


class GrammarInput(Strict):
    """The text of a grammar. The model sees it, but the answer is not held to it."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class CustomTool(Strict):
    """A tool of the client that takes free text."""

    type: Literal["custom"]
    name: str = Field(pattern=_NAME)
    description: str | None = None
    format: Annotated[TextInput | GrammarInput, Field(discriminator="type")] | None = None
    # Only these values are accepted: the model calls the tool, and sees it from the start.
    allowed_callers: list[Literal["direct"]] | None = Field(None, min_length=1, max_length=1, exclude=True)
    defer_loading: Literal[False] | None = Field(None, exclude=True)

    def lower(self, at: str, namespace: str | None = None) -> Iterator[Tool]:
        """Lower to neutral tools. at: the tool's path in the request."""
        parts = [] if self.description is None else [self.description]
        if isinstance(self.format, GrammarInput):
            parts.append(f"The input must match this {self.format.syntax} grammar:\n{self.format.definition}")
        function = OfferedFunction(function_name(self.name, namespace), _INPUT, at, strict=False)
        yield shown_tool(function, "\n\n".join(parts) or None)

    def shown(self) -> dict[str, Any]:
        """As an answer repeats it."""
        return self.model_dump()


class LocalShellTool(Strict):
    """A shell on the client's machine."""

    type: Literal["local_shell"]

    def lower(self, at: str) -> Iterator[Tool]:
        """Lower to neutral tools. at: the tool's path in the request."""
        yield shown_tool(OfferedFunction(SHELL, _SHELL, at, strict=False), "Runs a command on the user's machine")

    def shown(self) -> dict[str, Any]:
        """As an answer repeats it."""
        return self.model_dump()


class NamespaceTool(Strict):
    """Functions under a common name."""

    type: Literal["namespace"]
    name: str = Field(pattern=_NAME)
    description: str | None = None
    tools: list[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]] = Field(max_length=1024)

    def lower(self, at: str) -> Iterator[Tool]:
        """Lower to neutral tools. at: the tool's path in the request."""
        for i, tool in enumerate(self.tools):
            yield from tool.lower(f"{at}.tools[{i}]", self.name)

    def shown(self) -> dict[str, Any]:
        """The tool as an answer repeats it."""
        return {**self.model_dump(), "tools": [tool.shown() for tool in self.tools]}


class ServerTool(BaseModel):
    """A tool that the server would have to run. It is left out, and a `warning` header says so."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal[
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
        "file_search",
        "code_interpreter",
        "image_generation",
        "mcp",
        "computer",
        "computer_use_preview",
        "tool_search",
        "programmatic_tool_calling",
    ]

    def lower(self, at: str) -> Iterator[Tool]:
        """Lower to no tools."""
        return iter(())


def _tag(value: Any) -> str | None:
    found = tag(value)
    return "#(server)" if found is not None and found[1:] in _SERVER_RUN else found


_SERVER_RUN = frozenset(ServerTool.model_fields["type"].annotation.__args__)  # type: ignore[union-attr]
AnyTool = Annotated[
    Annotated[FunctionTool, Tag("#function")]
    | Annotated[CustomTool, Tag("#custom")]
    | Annotated[NamespaceTool, Tag("#namespace")]
    | Annotated[LocalShellTool, Tag("#local_shell")]
    | Annotated[ServerTool, Tag("#(server)")],
    Discriminator(_tag),
]
ShownTool = FunctionTool | CustomTool | NamespaceTool | LocalShellTool


def function_name(name: str, namespace: str | None) -> str:
    """The name under which the model sees a tool of a namespace."""
    if namespace is None:
        return name
    return f"{namespace}{name}" if namespace.endswith("_") else f"{namespace}__{name}"


def lowered(tools: Sequence[AnyTool]) -> list[Tool]:
    """Lower the tools that the model may call."""
    return [tool for i, given in enumerate(tools) for tool in given.lower(f"tools[{i}]")]


def shown(tools: Iterable[AnyTool]) -> list[dict[str, Any]]:
    """The tools as an answer repeats them: those that the model may call."""
    return [tool.shown() for tool in tools if not isinstance(tool, ServerTool)]


def origins(tools: Iterable[Mapping[str, Any]], namespace: str | None = None) -> dict[str, Origin]:
    """The client's tool behind each function of the model, by the function's name. tools: as an answer repeats them."""
    found: dict[str, Origin] = {}
    for tool in tools:
        match tool:
            case {"type": "namespace", "name": name, "tools": inner}:
                found |= origins(inner, name)
            case {"type": "local_shell"}:
                found[SHELL] = Origin("local_shell", SHELL)
            case {"type": "function" | "custom" as kind, "name": name}:
                found[function_name(name, namespace)] = Origin(kind, name, namespace)
    return found


def warning(tools: Sequence[AnyTool]) -> str | None:
    """The value of the `warning` header that names the left-out tools."""
    left_out = [f"tools[{i}] {tool.type}" for i, tool in enumerate(tools) if isinstance(tool, ServerTool)]
    return f'299 ling "left out, as the server runs no tools: {", ".join(left_out)}"' if left_out else None


def _no_own_tool(value: Any) -> Any:
    if value not in ("function", "custom"):
        raise ValueError(
            f"{str(value)[:80]!r} would have to run on the server, which runs no tools; use type 'function'"
        )
    return value


class NamedTool(Strict):
    """One function or custom tool."""

    type: Annotated[Literal["function", "custom"], BeforeValidator(_no_own_tool)]
    name: str
    namespace: str | None = None

    @property
    def function_name(self) -> str:
        """The name under which the model sees it."""
        return function_name(self.name, self.namespace)


class AllowedTools(Strict):
    """Offers the model only some of the request's tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=1024)


def _known_choice(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") not in (None, "allowed_tools"):
        _no_own_tool(value["type"])
    return value


def _choice_tag(value: Any) -> str | None:
    found = tag(value) if isinstance(value, dict | BaseModel) else "#(word)"
    return "#function" if found == "#custom" else found


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("#(word)")]
    | Annotated[NamedTool, Tag("#function")]
    | Annotated[AllowedTools, Tag("#allowed_tools")],
    Discriminator(_choice_tag),
    BeforeValidator(_known_choice),
]
