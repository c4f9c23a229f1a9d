"""`ling snapshot`: a session or a failed request as a file, opened and computed again by another cluster."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from cluster.remote import RemoteError, ask, connected, refusal
from wire.snapshot_file import SnapshotFile, SnapshotFileError, Turn, check

snapshot = typer.Typer(
    help="Save a session, or a request that failed, as a file; show one; open one as a session; compute its last "
    "answer again, token for token.",
    no_args_is_help=True,
)
_TIMEOUT_S = 600.0
_PIECE = 1024 * 1024
Url = Annotated[str, typer.Option(help="Where the cluster listens.", envvar="LING_URL")]
Key = Annotated[
    str | None, typer.Option(help="Where the cluster asks for one.", envvar="LING_API_KEY", show_default=False)
]
File = Annotated[Path, typer.Argument(help="The snapshot's file.")]
_URL = "http://127.0.0.1:8000"


@snapshot.command()
def save(
    name: Annotated[str, typer.Argument(help="The session's name, or the request's id.")],
    file: File,
    request: Annotated[bool, typer.Option("--request", help="NAME is the x-request-id of a failed request.")] = False,
    url: Url = _URL,
    api_key: Key = None,
) -> None:
    """Write a session's tokens, sampling and kept state to a file that only you can read."""
    path = f"/v1/{'requests' if request else 'sessions'}/{quote(name, safe='')}/snapshot"
    partial = file.with_name(file.name + ".partial")
    with _told(), connected(url, api_key, _TIMEOUT_S) as client:
        try:
            with client.stream("GET", path) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise RemoteError(refusal(answer))
                partial.touch(mode=0o600)
                with partial.open("wb") as out:
                    for piece in answer.iter_bytes(_PIECE):
                        out.write(piece)
            line = _line(_checked(partial, "what came"))
            partial.replace(file)
        except OSError as error:
            raise RemoteError(f"{file} can't be written: {error.strerror}") from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        Console().print(f"{file}: {line}", highlight=False, soft_wrap=True)


@snapshot.command()
def show(file: File) -> None:
    """Check all checksums of a file and show its content."""
    with _told():
        Console().print(_line(_read(file)), highlight=False, soft_wrap=True)


@snapshot.command()
def load(
    file: File,
    session: Annotated[str, typer.Argument(help="The name of the session that it becomes.")],
    url: Url = _URL,
    api_key: Key = None,
) -> None:
    """Create a session that continues where the file ends; what the file holds of the state is not computed again."""
    with _told(), connected(url, api_key, _TIMEOUT_S) as client:
        saved = _read(file)
        made = _opened(client, file, session)
        kept = f"the first {made['kept_tokens']} from its state" if saved.head.position else "none from a state"
        Console().print(f"{session}: {made['tokens']} tokens, {kept}", highlight=False, soft_wrap=True)


@snapshot.command()
def replay(file: File, url: Url = _URL, api_key: Key = None) -> None:
    """Compute the last answer again, with its seed, and compare. Fails if a token differs.

    Of a failed request the whole answer is computed: if it fails again, that is said.
    """
    with _told(), connected(url, api_key, _TIMEOUT_S) as client:
        turn = _turn(file, _read(file))
        name = f"replay-{secrets.token_hex(8)}"
        _opened(client, file, name)
        try:
            body = {"max_tokens": turn.sampling.max_tokens} if turn.error else {}
            answer = ask(client, "POST", f"/v1/sessions/{name}/replay", json=body)
        finally:
            client.delete(f"/v1/sessions/{name}")
        got, want, at = answer["token_ids"], answer["answer_token_ids"], answer["equal_tokens"]
        if not answer["equal"]:
            there, here = tuple(want[at : at + 8]), tuple(got[at : at + 8])
            raise RemoteError(f"the answers differ from token {at} on: {there} was saved, {here} was computed")
        more = f", then {len(got) - len(want)} more without a failure" if turn.error else ""
        begun = f"{answer['cached_tokens']} of {answer['prompt_tokens']} prompt tokens were not computed"
        Console().print(f"equal: {len(want)} tokens{more}; {begun}", highlight=False, soft_wrap=True)


def _opened(client: httpx.Client, file: Path, session: str) -> dict[str, Any]:
    def pieces() -> Iterator[bytes]:
        with file.open("rb") as content:
            while piece := content.read(_PIECE):
                yield piece

    headers = {"content-type": "application/octet-stream"}
    return ask(client, "POST", f"/v1/sessions/{quote(session, safe='')}/snapshot", content=pieces(), headers=headers)


def _turn(file: Path, saved: SnapshotFile) -> Turn:
    if saved.head.turn is None:
        reason = "it does not say what was asked; save one with `ling snapshot save`"
        raise RemoteError(f"{file} is a worker's own: {reason}")
    return saved.head.turn


def _line(saved: SnapshotFile) -> str:
    head = saved.head
    what = f"weights {head.weights_id}: {len(saved.token_ids)} tokens"
    if (turn := head.turn) is not None:
        sampling = turn.sampling
        what = (
            f"{turn.model}, weights {head.weights_id}: a prompt of {turn.prompt_tokens} tokens and an answer of "
            f"{len(saved.token_ids) - turn.prompt_tokens}, temperature {sampling.temperature:g}, seed {sampling.seed}"
            f"{', held to a grammar' if sampling.grammar is not None else ''}"
        )
    ends = " and ".join(map(str, head.positions))
    kept = f"states after {ends} tokens, of {head.split} ranks, {saved.bytes:,} bytes" if ends else "no state"
    failed = f"; it failed: {head.turn.error}" if head.turn is not None and head.turn.error else ""
    return f"{what}; {kept}{failed}"


def _read(file: Path) -> SnapshotFile:
    return _checked(file, str(file))


def _checked(file: Path, name: str) -> SnapshotFile:
    try:
        return check(file)
    except OSError as error:
        raise RemoteError(f"{name} can't be read: {error.strerror}") from error
    except SnapshotFileError as error:
        raise RemoteError(f"{name} is no whole snapshot: {error}") from error


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except RemoteError as problem:
        Console(stderr=True).print(f"[red]error[/] {escape(str(problem))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
