"""Asks a running cluster over HTTP, for commands: returns its answer, or fails with one line that says why."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

_TIMEOUT_S = 10.0


class RemoteError(RuntimeError):
    """The cluster did not answer, or refused. The message is one line for the user."""


@contextmanager
def connected(url: str, api_key: str | None = None, timeout_s: float = _TIMEOUT_S) -> Iterator[httpx.Client]:
    """A client of the cluster at `url`; RemoteError if it can't be reached while the client is in use."""
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    try:
        with httpx.Client(base_url=url, timeout=timeout_s, headers=headers) as client:
            yield client
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RemoteError(f"nothing answers at {url}: {error or type(error).__name__}") from error


def ask(client: httpx.Client, method: str, path: str, **sent: Any) -> dict[str, Any]:
    """The JSON object that answers a request; RemoteError if it is refused, or if no cluster answers."""
    answer = client.request(method, path, **sent)
    if answer.status_code != httpx.codes.OK:
        raise RemoteError(refusal(answer))
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RemoteError(f"what answers at {answer.url} is no cluster")
    return found


def refusal(answer: httpx.Response) -> str:
    """The message of a refusal. A proxy's, which is not in a cluster's form, is cut to one line."""
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = None
    if isinstance(message, str):
        return message
    return f"{answer.url} answered {answer.status_code}: {' '.join(answer.text.split())[:200]}"


def fetch_status(url: str) -> dict[str, Any]:
    """A cluster's `/status`; RemoteError if there is none at `url`."""
    with connected(url) as client:
        status = ask(client, "GET", "/status")
    if not isinstance(status.get("pools"), dict):
        raise RemoteError(f"what answers at {url} is no cluster: its status has no pools")
    return status
