"""A generating request's use of a session."""

from dataclasses import replace

from starlette.requests import Request as HttpRequest
from starlette.types import Scope

from router.api.request import Request
from router.api.schema import session_name
from router.errors import invalid
from router.http.caller import Caller, caller_of
from router.relay.job import Job
from router.relay.sessions import Sessions, Turn, missing

HEADER = "x-ling-session"


def named(request: HttpRequest) -> tuple[str, str]:
    """The tenant of a request about a session, and the session's name; 404 for what no session can be called."""
    session_id: str = request.path_params["session_id"]
    try:
        session_name(session_id)
    except ValueError:
        raise missing(session_id) from None
    return caller_of(request.scope).tenant, session_id


def session_of(scope: Scope, request: Request) -> str | None:
    """The session that a request names in its field or header; 400 if both differ or the name is not valid."""
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == HEADER.encode()]
    for name in given:
        try:
            session_name(name)
        except ValueError as error:
            raise invalid(f"'{HEADER}' {name[:80]!r} {error}", HEADER) from None
    names = {*given, *([request.session] if request.session is not None else [])}
    if len(names) > 1:
        raise invalid(f"'{HEADER}' and 'session_id' name two sessions: send one of them", HEADER)
    if names and request.choices != 1:
        raise invalid("a session needs a request with one answer: send one prompt and n=1", "session_id")
    return names.pop() if names else None


async def begin_turn(
    sessions: Sessions, name: str | None, caller: Caller, job: Job, *, takes_over: bool = True
) -> Turn | None:
    """Begin the job's turn in its session; None without a session. 403, 409.

    When the job ends well, the session continues from the end of its answer. takes_over: a job with a key takes the
    session from an earlier one with the same key.
    """
    if name is None:
        return None
    turn = await sessions.begin(caller.tenant, name, job.prefix_scope, job.keyed, takes_over=takes_over)
    (choice,) = job.choices
    if turn.tokens and not choice.prompt.boundaries:
        # The ends of a raw text's turns are unknown, except for the end of this one.
        choice.prompt = replace(choice.prompt, boundaries=(turn.tokens,))

    async def end() -> None:
        await sessions.end(turn, job.streams[0], caller.request_id)

    job.at_end = end
    return turn
