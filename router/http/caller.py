"""The caller of a request, as the middlewares identified it; stored in the request's ASGI scope."""

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
    """request_id: the client's own id, else a new one. tenant: the owner of the key; "" if no key is needed.

    account: the key's limits and use; None if it has no limits. priority: as the request asks, once it is read. span:
    of its trace; None without tracing. choices: the choices computed for it. asked: the body, if prompts are to be
    logged.
    """

    request_id: str
    tenant: str = ""
    account: Account | None = None
    priority: int = 0
    span: RequestSpan | None = None
    choices: list[Choice] = field(default_factory=list)
    asked: str = ""


def caller_of(scope: Scope) -> Caller:
    """The caller of a request."""
    caller: Caller = scope[_NAME]
    return caller


def introduce(scope: Scope, caller: Caller) -> None:
    """Set the caller that `caller_of` returns from now on."""
    scope[_NAME] = caller
