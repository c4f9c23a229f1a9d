"""Answers about sessions."""

from typing import Literal

from typing_extensions import TypedDict


class SessionRecord(TypedDict):
    """A session. Times are Unix time in seconds.

    tokens: of the conversation up to the end of its last answer. kept_tokens, bytes: the size of the snapshot that a
    worker keeps of it. tier: the fastest tier of memory that holds the snapshot; null if the session has to be computed
    again. parent: the session that it was forked from. last_request: the id of the request that last continued it.
    """

    id: str
    object: Literal["session"]
    tokens: int
    kept_tokens: int
    tier: Literal["device", "host", "disk"] | None
    bytes: int
    created_at: int
    expires_at: int
    parent: str | None
    last_request: str | None


class ReplayedTurn(TypedDict):
    """A session's last answer, computed again. token_ids: what came now; answer_token_ids: what the session has.

    equal_tokens: the first tokens that are the same; equal: all that the session has. cached_tokens: of the prompt,
    those that were not computed.
    """

    id: str
    object: Literal["session.replay"]
    prompt_tokens: int
    cached_tokens: int
    token_ids: list[int]
    answer_token_ids: list[int]
    equal_tokens: int
    equal: bool


class SessionList(TypedDict):
    """A page of the tenant's sessions."""

    object: Literal["list"]
    data: list[SessionRecord]
