"""Chat with a running cluster in the terminal."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
from rich.console import Console
from rich.markup import escape

from cluster.remote import refusal

_KEY_HINT = "; give it as --api-key or in LING_API_KEY"
_HELP = "/clear forgets the conversation, /exit ends. Ctrl-C stops an answer."
# An answer may wait long in a queue, so there is no timeout for it; a server that has ended refuses connections at
# once.
_TIMEOUT = httpx.Timeout(10.0, read=600.0)


class AnswerError(RuntimeError):
    """The cluster refused the request, or could not finish the answer."""


class Chat:
    """One conversation, kept on this side: each turn sends all of it."""

    def __init__(
        self, url: str, console: Console, system: str | None, settings: dict[str, Any], api_key: str | None = None
    ) -> None:
        """settings: added unchanged to every request. api_key: sent with every request, if there is one."""
        self._url = url.rstrip("/")
        self._console = console
        self._opening = [{"role": "system", "content": system}] if system else []
        self._settings = settings
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self.messages: list[dict[str, str]] = list(self._opening)

    def run(self) -> None:
        """Read a message and stream its answer, until /exit or the input's end."""
        self._console.print(f"[dim]{self._url}. {_HELP}[/]", highlight=False)
        with httpx.Client(timeout=_TIMEOUT, headers=self._headers) as client:
            while (text := self._read()) is not None:
                if text == "/clear":
                    self.messages = list(self._opening)
                elif text.startswith("/"):
                    self._console.print(f"[dim]{_HELP}[/]")
                elif text:
                    self._turn(client, text)

    def _read(self) -> str | None:
        try:
            text = self._console.input("[bold cyan]you ›[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            self._console.print()
            return None
        return None if text == "/exit" else text

    def _turn(self, client: httpx.Client, text: str) -> None:
        """Stream one answer. The text of a stopped or broken answer stays in the conversation."""
        asked = {"role": "user", "content": text}
        said: list[str] = []
        try:
            for piece in self._stream(client, [*self.messages, asked]):
                said.append(piece)
                self._console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            self._console.print(" [dim]stopped[/]", end="")
        except httpx.HTTPError as error:
            self._console.print(f"[red]no answer from {self._url}: {escape(str(error))}[/]", end="")
        except AnswerError as error:
            self._console.print(f"[red]{escape(str(error))}[/]", end="")
        self._console.print()
        if said:
            self.messages += [asked, {"role": "assistant", "content": "".join(said)}]

    def _stream(self, client: httpx.Client, messages: list[dict[str, str]]) -> Iterator[str]:
        body = {"model": "auto", "messages": messages, "stream": True, **self._settings}
        with client.stream("POST", f"{self._url}/v1/chat/completions", json=body) as response:
            if not response.is_success:
                response.read()
                hint = "" if response.status_code != httpx.codes.UNAUTHORIZED else _KEY_HINT
                raise AnswerError(f"{response.status_code}: {refusal(response)}{hint}")
            for line in _lines(response):
                if not line.startswith("data: "):
                    continue
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise AnswerError(event["error"]["message"])
                for choice in event["choices"]:
                    yield choice["delta"].get("content") or ""
        raise AnswerError("the answer was cut off")


def _lines(response: httpx.Response) -> Iterator[str]:
    """Split a stream at LF only: httpx splits at every line end of Unicode, which JSON may contain."""
    held = ""
    for text in response.iter_text():
        *whole, held = (held + text).split("\n")
        yield from whole
