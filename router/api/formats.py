"""The fields that constrain an answer's text: OpenAI's `response_format` and vLLM's `structured_outputs`."""

import json
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Annotated, Any, Literal

from msgspec import structs
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from router.api.request import Conversation, Names, RawPrompts, Request, Sampling
from router.api.schema import GenerationRequest, Strict, meaningless
from router.errors import invalid
from router.text.grammar import Form, Schema, grammar_of, json_form
from router.text.grammar_texts import Tagged, choice_form, client_form, regex_form, tagged_form

_GUIDED: Mapping[str, Callable[[Any, str], Form]] = {
    "guided_json": lambda schema, param: json_form(Schema(schema, param)),
    "guided_regex": regex_form,
    "guided_choice": choice_form,
    "guided_grammar": client_form,
}
# Fields with the same name in a request and in its neutral sampling.
_SAMPLING = tuple(f.name for f in structs.fields(Sampling) if f.name in GenerationRequest.model_fields)
_sampling_of = attrgetter(*_SAMPLING)
# Fields that constrain the answer; a request may use one of them.
_FORMS = ("structured_outputs", "response_format", *_GUIDED)
_forms_of = attrgetter(*_FORMS)


def _tag(value: Any) -> str | None:
    """The discriminator: the object's type, marked so that it can be told from a field in an error's path."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"#{kind}" if kind is not None else None


def _read_json(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from None


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"] = "text"


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaSpec(Strict):
    """A JSON Schema and its name. With `strict`, a keyword that can't be enforced is a 400; without, it is ignored."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = meaningless(None)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON that a schema validates."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaSpec


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("#text")]
    | Annotated[JsonObjectFormat, Tag("#json_object")]
    | Annotated[JsonSchemaFormat, Tag("#json_schema")],
    Discriminator(_tag),
]


class TagStructure(Strict):
    """JSON that `schema` validates, between the texts `begin` and `end`; `begin` starts with one of the triggers."""

    begin: str = Field(min_length=1, max_length=1024)
    schema_: dict[str, Any] = Field(alias="schema")
    end: str = Field("", max_length=1024)


class StructuralTag(Strict):
    """Free text in which each trigger must continue as one of the structures that begin with it."""

    type: Literal["structural_tag"]
    structures: list[TagStructure] = Field(min_length=1, max_length=256)
    triggers: list[Annotated[str, Field(min_length=1, max_length=1024)]] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _triggered(self) -> "StructuralTag":
        for i, structure in enumerate(self.structures):
            if not structure.begin.startswith(tuple(self.triggers)):
                raise ValueError(f"structures[{i}].begin starts with none of the triggers")
        return self

    def form(self, param: str) -> Form:
        """The form as workers take it."""
        tags = [
            Tagged(s.begin, Schema(s.schema_, f"{param}.structures[{i}].schema"), s.end)
            for i, s in enumerate(self.structures)
        ]
        return tagged_form(tags, tuple(self.triggers), param)


class StructuredOutputs(Strict):
    """Exactly one of these fields.

    `json` is a JSON Schema, as an object or text. `grammar` is EBNF (`root ::=`) or Lark (`start:`).
    """

    json_: Annotated[dict[str, Any] | None, BeforeValidator(_read_json)] = Field(None, alias="json")
    regex: str | None = Field(None, min_length=1, description="matches the whole text; without look-around")
    choice: list[Annotated[str, Field(min_length=1)]] | None = Field(None, min_length=1, max_length=4096)
    grammar: str | None = Field(None, min_length=1, max_length=16384)
    structural_tag: Annotated[StructuralTag | None, BeforeValidator(_read_json)] = None

    @model_validator(mode="after")
    def _one(self) -> "StructuredOutputs":
        if len(self.model_fields_set) != 1:
            raise ValueError("send exactly one of json, regex, choice, grammar, structural_tag")
        return self

    def form(self, param: str) -> Form:
        """The form as workers take it; 400 if a grammar is neither Lark nor EBNF."""
        if self.json_ is not None:
            return json_form(Schema(self.json_, f"{param}.json"))
        if self.regex is not None:
            return regex_form(self.regex, f"{param}.regex")
        if self.choice is not None:
            return choice_form(self.choice, f"{param}.choice")
        if self.grammar is not None:
            return client_form(self.grammar, f"{param}.grammar")
        assert self.structural_tag is not None
        return self.structural_tag.form(f"{param}.structural_tag")


class FormattedRequest(GenerationRequest):
    """A request that may constrain the form of its answer."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    # vLLM's earlier names for the fields of `structured_outputs`.
    guided_json: Annotated[dict[str, Any] | None, BeforeValidator(_read_json, json_schema_input_type=Any)] = None
    guided_regex: str | None = Field(None, min_length=1)
    guided_choice: list[Annotated[str, Field(min_length=1)]] | None = Field(None, min_length=1, max_length=4096)
    guided_grammar: str | None = Field(None, min_length=1, max_length=16384)

    @model_validator(mode="after")
    def _one_format(self) -> "FormattedRequest":
        values = _forms_of(self)
        if values.count(None) < len(values) - 1:
            given = [name for name, value in zip(_FORMS, values, strict=True) if value is not None]
            raise invalid(f"'{given[0]}' and '{given[1]}': send one of them", given[0])
        return self

    def _content_form(self) -> Form | None:
        """The form of the answer's content; None if it is free."""
        if self.structured_outputs is not None:
            return self.structured_outputs.form("structured_outputs")
        for name, form in _GUIDED.items():
            if (value := getattr(self, name)) is not None:
                return form(value, name)
        if self.response_format is not None:
            return grammar_of(self.response_format.model_dump(by_alias=True), "response_format.json_schema.schema")
        return None

    def neutral(
        self,
        source: Conversation | RawPrompts,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
    ) -> Request:
        """Make the neutral request of `source`.

        The other arguments are the fields that the two APIs name differently.
        """
        sampling = Sampling(
            max_tokens,
            **dict(zip(_SAMPLING, _sampling_of(self), strict=True)),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        return Request(
            source,
            sampling,
            self._content_form(),
            stream=self.stream,
            include_usage=self.include_usage,
            continuous_usage=self.continuous_usage,
            token_ids=self.return_token_ids,
            priority=self.priority,
            cache_salt=self.cache_salt,
            names=Names() if isinstance(source, Conversation) else Names(turns="prompt"),
            session=self.session_id,
        )
