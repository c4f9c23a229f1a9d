"""A generating request's use of a session."""

import re
from dataclasses import replace

from starlette.types import Scope

from router.api.request import Request
from router.api.schema import SESSION_NAME
from router.errors import invalid
from router.http.caller import Caller
from router.relay.job import Job
from router.relay.sessions import Sessions, Turn

HEADER = "x-ling-session"


def session_of(scope: Scope, request: Request) -> str | None:
    """The session that a request names, by its field or by the header; 400 where the two differ or it is no name."""
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == HEADER.encode()]
    for name in given:
        if not re.fullmatch(SESSION_NAME, name):
            raise invalid(f"'{HEADER}' {name[:80]!r} must be 1 to 128 of A-Z a-z 0-9 . _ ~ -", HEADER)
    names = {*given, *([request.session] if request.session is not None else [])}
    if len(names) > 1:
        raise invalid(f"'{HEADER}' and 'session_id' name two sessions: send one of them", HEADER)
    if names and request.choices != 1:
        raise invalid("a session continues with one answer: send one prompt and n=1 with it", "session_id")
    return names.pop() if names else None


async def begin_turn(sessions: Sessions, name: str | None, caller: Caller, job: Job) -> Turn | None:
    """Take the session for the job, which moves its end when it ends well; None without a session. 403, 409."""
    if name is None:
        return None
    turn = await sessions.begin(caller.tenant, name, job.prefix_scope)
    (choice,) = job.choices
    if turn.tokens and not choice.prompt.boundaries:
        # Of a text nobody knows where its turns end, but for this one.
        choice.prompt = replace(choice.prompt, boundaries=(turn.tokens,))

    async def end() -> None:
        await sessions.end(turn, job.streams[0], caller.request_id)

    job.at_end = end
    return turn
