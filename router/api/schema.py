"""Request bodies. They are strict: each field is honoured, accepted with harmless values only, or refused.

A null counts as a missing field at any depth, except in the client's own data (schemas, arguments): clients write nulls
for fields that they do not set, and answers that they send back as history are full of nulls.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from router.errors import invalid
from router.priority import LATEST, SOONEST

Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Short = Annotated[str, Field(max_length=512)]
_SESSION_NAME = re.compile(r"[A-Za-z0-9._~-]{1,128}")


def session_name(name: str) -> str:
    """Check the name of a session; ValueError."""
    # A client takes `.` and `..` in a URL for steps between folders, so such a session could not be asked for.
    if _SESSION_NAME.fullmatch(name) is None or name in (".", ".."):
        raise ValueError("must be 1 to 128 of A-Z a-z 0-9 . _ ~ -, and not . or ..")
    return name


SessionId = Annotated[
    str, AfterValidator(session_name), Field(json_schema_extra={"pattern": r"^(?!\.{1,2}$)[A-Za-z0-9._~-]{1,128}$"})
]
# More turns than any context holds, as each takes some tokens. The limit bounds the time to read and render them.
MAX_TURNS = 16_384


def meaningless(default: Any, **constraints: Any) -> Any:
    """A field that the server accepts and ignores."""
    return Field(default, json_schema_extra={"here": "meaningless"}, **constraints)


def _stop_list(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of strings")
    return value


class Strict(BaseModel):
    """A model that takes no field but its own, and no type but the field's."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict) and None in value.values():
            return {k: v for k, v in value.items() if v is not None}
        return value


class StreamOptions(Strict):
    """What a stream contains besides tokens."""

    include_usage: bool = False
    continuous_usage_stats: bool = Field(False, description="with `include_usage`, each chunk has the usage so far")
    include_obfuscation: Literal[False] = False


class GenerationRequest(Strict):
    """The fields of both /v1/chat/completions and /v1/completions."""

    model: str
    temperature: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    top_p: Probability = 1.0
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: Probability = 0.0
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: float = Field(1.0, gt=0, le=10, allow_inf_nan=False)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]] = Field(
        default_factory=dict, max_length=1024
    )
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1024)]],
        Field(max_length=16),
        BeforeValidator(_stop_list, json_schema_input_type=str | list[str]),
    ] = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=256)
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    n: int = Field(1, ge=1, le=16)
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    cache_salt: Short | None = Field(
        None, min_length=1, description="requests share cached prefixes only if their salts are equal"
    )
    session_id: SessionId | None = Field(
        None, description="the session that this request continues; see docs/SESSIONS.md"
    )
    priority: int = Field(0, ge=SOONEST, le=LATEST, description="lower numbers go first and preempt higher ones")
    # The fields below change nothing, or accept only the value that asks for nothing.
    user: Short | None = meaningless(None)
    metadata: dict[Short, Short] | None = meaningless(None, max_length=16)
    store: bool = meaningless(False)
    service_tier: Literal["auto", "default", "flex"] = meaningless("auto")
    best_of: Literal[1] = 1
    skip_special_tokens: Literal[True] = True
    spaces_between_special_tokens: Literal[True] = True
    include_stop_str_in_output: Literal[False] = False

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> "GenerationRequest":
        if self.stream_options is not None and not self.stream:
            raise invalid("'stream_options' needs stream=true", "stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether each chunk of a stream carries the usage so far."""
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats
