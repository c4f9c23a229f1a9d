"""`ling snapshot`: a session as a file, and its last answer computed again by another cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape

from wire.session_file import SessionFile, SessionFileError, unpack

snapshot = typer.Typer(
    help="Save a session as a file; show one; compute its last answer again, token for token.", no_args_is_help=True
)
_TIMEOUT_S = 600.0
Url = Annotated[str, typer.Option(help="Where the cluster listens.", envvar="LING_URL")]
Key = Annotated[
    str | None, typer.Option(help="Where the cluster asks for one.", envvar="LING_API_KEY", show_default=False)
]
File = Annotated[Path, typer.Argument(help="The session's file.")]
_URL = "http://127.0.0.1:8000"


class _Problem(Exception):
    """What the user is told."""


@snapshot.command()
def save(
    session: Annotated[str, typer.Argument(help="The session's name.")],
    file: File,
    url: Url = _URL,
    api_key: Key = None,
) -> None:
    """Write a session's tokens, and how its last answer was sampled, to a file that only you can read."""
    with _told(), _client(url, api_key) as client:
        content = _asked(client, "GET", f"/v1/sessions/{session}/snapshot").content
        file.touch(mode=0o600)
        file.write_bytes(content)
        Console().print(f"{file}: {_line(unpack(content))}", highlight=False, soft_wrap=True)


@snapshot.command()
def show(file: File) -> None:
    """Say what a file holds."""
    with _told():
        Console().print(_line(_read(file)), highlight=False, soft_wrap=True)


@snapshot.command()
def replay(file: File, url: Url = _URL, api_key: Key = None) -> None:
    """Compute the last answer again, with its seed, and compare. Fails if a token differs."""
    with _told(), _client(url, api_key) as client:
        saved = _read(file)
        served = _weights(client)
        if saved.weights_id not in served:
            raise _Problem(
                f"{file} is of the weights {saved.weights_id} ({saved.model}); the cluster at {url} serves "
                f"{', '.join(sorted(served)) or 'none yet'}"
            )
        body = _request(saved)
        choice = _asked(client, "POST", "/v1/completions", json=body).json()["choices"][0]
        got, want = tuple(choice["token_ids"]), saved.answer
        if got != want:
            pairs = enumerate(zip(got, want, strict=False))
            at = next((i for i, (mine, theirs) in pairs if mine != theirs), min(len(got), len(want)))
            there, here = want[at : at + 8], got[at : at + 8]
            raise _Problem(f"the answers differ from token {at} on: {there} was saved, {here} was computed")
        Console().print(f"equal: {len(want)} tokens", highlight=False)


def _request(saved: SessionFile) -> dict[str, Any]:
    sampling = saved.sampling
    if sampling.grammar is not None:
        raise _Problem("the answer was held to a form or to calls of tools; such a one can't be replayed from a file")
    if not saved.answer:
        raise _Problem("the last answer has no tokens: there is nothing to replay")
    return {
        "model": "auto",
        "prompt": list(saved.token_ids[: saved.prompt_tokens]),
        "max_tokens": len(saved.answer),
        "seed": sampling.seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias},
        "stop_token_ids": list(sampling.stop_token_ids),
        "min_tokens": min(sampling.min_tokens, len(saved.answer)),
        "ignore_eos": True,  # the file's stop_token_ids hold whatever ended the answer
        "return_token_ids": True,
    }


def _weights(client: httpx.Client) -> set[str]:
    pools = _asked(client, "GET", "/status").json()["pools"]
    return {one["weights_id"] for pool in pools.values() for one in pool["workers"] if "weights_id" in one}


def _line(saved: SessionFile) -> str:
    sampling = saved.sampling
    return (
        f"{saved.model}, weights {saved.weights_id}: a prompt of {saved.prompt_tokens} tokens and an answer of "
        f"{len(saved.answer)}, temperature {sampling.temperature:g}, seed {sampling.seed}"
    )


def _read(file: Path) -> SessionFile:
    try:
        return unpack(file.read_bytes())
    except OSError as error:
        raise _Problem(f"{file} can't be read: {error.strerror}") from error
    except SessionFileError as error:
        raise _Problem(f"{file} is no session's file: {error}") from error


def _client(url: str, api_key: str | None) -> httpx.Client:
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    return httpx.Client(base_url=url, timeout=_TIMEOUT_S, headers=headers)


def _asked(client: httpx.Client, method: str, path: str, **sent: Any) -> httpx.Response:
    try:
        answer = client.request(method, path, **sent)
    except httpx.HTTPError as error:
        raise _Problem(f"nothing answers at {client.base_url}: {error}") from error
    if answer.status_code != 200:
        raise _Problem(answer.json()["error"]["message"])
    return answer


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except _Problem as problem:
        Console(stderr=True).print(f"[red]error[/] {escape(str(problem))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
