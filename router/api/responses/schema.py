"""Body of /v1/responses, and its lowering to a neutral request."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from router.api.request import Conversation, Request, Sampling, Tools, choose_tools
from router.api.responses.includes import LOGPROBS, Includable
from router.api.responses.items import Attachment, FunctionCallOutput, InputItem, tag
from router.api.responses.tools import AllowedTools, AnyTool, NamedTool, ToolChoice, lowered
from router.api.responses.turns import NAMES, Item, turns
from router.api.schema import MAX_TURNS, Probability, SessionId, Short, Strict, meaningless
from router.errors import Path, invalid
from router.priority import LATEST, SOONEST
from router.text.grammar import Form, Schema, json_form


def _item_list(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of items")
    return value


class FreeText(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObject(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Strict):
    """JSON that a schema validates.

    With `strict`, a keyword that can't be enforced is a 400; without, it is ignored.
    """

    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


Format = Annotated[
    Annotated[FreeText, Tag("#text")]
    | Annotated[JsonObject, Tag("#json_object")]
    | Annotated[JsonSchema, Tag("#json_schema")],
    Discriminator(tag),
]


class TextConfig(Strict):
    """The form of the answer's text."""

    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = meaningless(None)


class Reasoning(Strict):
    """Whether to reason first. The answer contains the reasoning itself, and no summary of it."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="`low` and above turn reasoning on; its length is the model's choice"
    )
    summary: Literal["auto", "concise", "detailed"] | None = meaningless(None)
    generate_summary: Literal["auto", "concise", "detailed"] | None = meaningless(None)
    context: Literal["auto", "current_turn"] | None = None
    mode: Literal["standard"] | None = None


class StreamOptions(Strict):
    """What a stream contains besides its events."""

    include_obfuscation: Literal[False] | None = None


class Compaction(Strict):
    """How a client wants long conversations shortened. It is ignored: only `truncation` shortens them."""

    type: Literal["compaction"]
    compact_threshold: int | None = meaningless(None, ge=1)


class ResponseRequest(Strict):
    """Body of /v1/responses."""

    model: str
    input: Annotated[
        list[InputItem],
        Field(min_length=1, max_length=MAX_TURNS),
        BeforeValidator(_item_list, json_schema_input_type=str | list[InputItem]),
    ]
    instructions: str | None = Field(None, description="apply to this answer alone; the next one does not inherit them")
    previous_response_id: Short | None = Field(None, description="the stored response whose conversation continues")
    store: bool = Field(True, description="stored as long as there is room: see above")
    background: bool = Field(False, description="needs `store`; continues when the client has disconnected")
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[AnyTool] = Field(default_factory=list, max_length=1024)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = Field(True, description="false: the answer ends after its first call")
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = Field(None, ge=1, description="reasoning counts too")
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: Probability = 1.0
    top_logprobs: int = Field(0, ge=0, le=20, description=f"needs `{LOGPROBS}` in `include`")
    include: list[Includable] = Field(
        default_factory=list,
        max_length=16,
        description="log-probabilities need an answer of text alone: no `tools`, no reasoning; "
        "the others change nothing: reasoning is not hidden, and the rest never occurs here",
    )
    truncation: Literal["auto", "disabled"] = Field(
        "disabled",
        description="`auto`: too long a conversation loses its oldest turns, never its instructions or last turn",
    )
    metadata: dict[Annotated[str, Field(max_length=64)], Short] = Field(
        default_factory=dict, max_length=16, description="repeated in the answer"
    )
    priority: int = Field(0, ge=SOONEST, le=LATEST, description="lower numbers go first and preempt higher ones")
    cache_salt: Short | None = Field(
        None, min_length=1, description="requests share cached prefixes only if their salts are equal"
    )
    session_id: SessionId | None = Field(
        None, description="the session that this request continues; see docs/SESSIONS.md"
    )
    # The answer repeats the fields below; they change nothing else.
    user: Short | None = meaningless(None)
    safety_identifier: Short | None = meaningless(None)
    prompt_cache_key: Short | None = meaningless(None)
    prompt_cache_retention: Literal["in_memory", "24h"] | None = meaningless(None)
    service_tier: Literal["auto", "default", "flex"] = meaningless("auto")
    client_metadata: dict[str, Any] | None = meaningless(None)
    context_management: list[Compaction] | None = meaningless(None, max_length=16)
    max_tool_calls: int | None = meaningless(None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> "ResponseRequest":
        if self.background and not self.store:
            raise invalid("'background' needs 'store': without it the answer could not be fetched", "background")
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' needs 'stream'", "stream_options")
        if self.top_logprobs and not self.wants_logprobs:
            raise invalid(f"'top_logprobs' needs '{LOGPROBS}' in 'include'", "top_logprobs")
        calls = lowered(self.tools) and self.tool_choice != "none"
        if self.wants_logprobs and (calls or self._effort not in (None, "none", "minimal")):
            message = f"'include': '{LOGPROBS}' needs an answer of text alone: no tools and no reasoning"
            raise invalid(message, "include")
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether the answer carries log-probabilities."""
        return LOGPROBS in self.include

    @property
    def _effort(self) -> str | None:
        return self.reasoning.effort if self.reasoning is not None else None

    def lower(self, earlier: Sequence[Item], asked: Sequence[Item]) -> Request:
        """Lower to a neutral request.

        earlier: the items of the conversation that it continues. asked: its own items in their stored form.
        """
        said = turns([*earlier, *asked], len(earlier), self.instructions)
        attached: dict[Path, Path] = {("input", i): at for i, at in self._attached()}
        said = tuple(replace(t, left_out=attached.get(t.at)) if t.role == "tool" else t for t in said)
        thinking = self._effort not in ("none", "minimal") if self._effort is not None else None
        conversation = Conversation(said, self._tools(), thinking, shorten=self.truncation == "auto")
        sampling = Sampling(
            self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            logprobs=self.top_logprobs if self.wants_logprobs else None,
        )
        return Request(
            conversation,
            sampling,
            self._form(),
            stream=self.stream,
            cache_salt=self.cache_salt,
            session=self.session_id,
            priority=self.priority,
            names=NAMES,
        )

    def _attached(self) -> Iterator[tuple[int, Path]]:
        """The paths of items that returned something other than text."""
        for i, item in enumerate(self.input):
            for j, part in enumerate(item.output if isinstance(item, FunctionCallOutput) else ()):
                if isinstance(part, Attachment):
                    yield i, ("input", i, "output", j, "type")

    def _form(self) -> Form | None:
        match self.text.format if self.text is not None else None:
            case JsonObject():
                return json_form(Schema({"type": "object"}, "text.format"))
            case JsonSchema(schema_=schema, strict=strict):
                return json_form(Schema(schema, "text.format.schema", strict=bool(strict)))
        return None

    def _tools(self) -> Tools:
        tools = lowered(self.tools)
        single = not self.parallel_tool_calls
        match self.tool_choice:
            case NamedTool() as chosen:
                return choose_tools(tools, "required", [chosen.function_name], single=True)
            case AllowedTools(mode=mode, tools=allowed):
                return choose_tools(tools, mode, [tool.function_name for tool in allowed], single=single)
            case "auto":
                return choose_tools(tools, None, None, single=single)
            case choice:
                return choose_tools(tools, choice, None, single=single)
