"""Who asks, as the middlewares found out; it lies in the request's ASGI scope."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.types import Scope

from router.access.limits import Account
from router.relay.choice import Choice

if TYPE_CHECKING:
    from router.tracing import RequestSpan

_NAME = "ling.caller"


@dataclass(slots=True)
class Caller:
    """request_id: the client's own, else a new one. tenant: whose key it was; "" where nobody is asked for one.

    account: what the key has left; None where it has no limits. priority: what the request asks for, once it is read.
    span: of its trace; None where nothing is traced. choices: what was computed for it. asked: its body, where prompts
    are to be logged.
    """

    request_id: str
    tenant: str = ""
    account: Account | None = None
    priority: int = 0
    span: RequestSpan | None = None
    choices: list[Choice] = field(default_factory=list)
    asked: str = ""


def caller_of(scope: Scope) -> Caller:
    """The request's."""
    caller: Caller = scope[_NAME]
    return caller


def introduce(scope: Scope, caller: Caller) -> None:
    """What `caller_of` answers from now on."""
    scope[_NAME] = caller
