"""Runs agent sessions while it kills workers and routers: `python -m benchmarks.chaos --seconds 120 --every 8`.

It starts `ling serve` on the embedded checkpoint with one prefill worker, two decode workers and two routers. It plays
every session once undisturbed, and then again and again while it kills leaders, ranks and routers (SIGKILL) and stops
ranks (SIGSTOP), in an order that the seed decides. A client whose connection ends reconnects with its Idempotency-Key
and the last event id it has. It counts streams that failed and transcripts that differ from the undisturbed ones, and
prints how long streams paused at each kind of kill. It exits with 1 if a stream failed or a transcript differs.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.serving import running_cluster

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
_CITIES = ("Paris", "Oslo", "Lima", "Cairo", "Quito", "Delhi", "Turin", "Accra")
_TURNS = 3
# Seconds of pauses after which a client gives up on an answer. All routers may be down at once.
_PATIENCE_S = 60.0
_PAUSE_S = 0.2


@dataclass
class Heard:
    """One answer: the assistant's message, finish reason, number of tokens, and the arrival times of its chunks."""

    message: dict[str, Any]
    finish: str | None
    tokens: int
    times: list[float]


@dataclass
class Tally:
    """The results of all streams during the kills.

    resumed: how often a client reconnected. pauses: by kind of kill, the longest pause in seconds of each stream that
    was open at one.
    """

    streams: int = 0
    failed: list[str] = field(default_factory=list)
    different: int = 0
    resumed: int = 0
    kills: int = 0
    pauses: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class _Stream:
    """What a client has received of one answer, over all its connections."""

    content: str = ""
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    finish: str | None = None
    tokens: int = 0
    done: bool = False
    last_id: str | None = None

    def event(self, last_id: str | None, data: str) -> None:
        """Take in one SSE event; RuntimeError if the event reports a failure."""
        self.last_id = last_id or self.last_id
        if data == "[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            raise RuntimeError(event["error"]["message"])
        self.tokens = event["usage"]["completion_tokens"] if event.get("usage") else self.tokens
        for choice in event["choices"]:
            self.finish = choice["finish_reason"] or self.finish
            self.content += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls") or []:
                function = self.calls.setdefault(call["index"], {"name": "", "arguments": ""})
                function["name"] += call["function"].get("name") or ""
                function["arguments"] += call["function"].get("arguments") or ""

    async def read(self, response: httpx.Response, times: list[float]) -> None:
        """Read all events of a connection; an event that is cut off is ignored. RuntimeError if the answer failed."""
        if response.status_code != 200:
            raise RuntimeError(f"{response.status_code}: {(await response.aread()).decode()[:200]}")
        held = ""
        async for text in response.aiter_text():
            times.append(time.monotonic())
            *events, held = (held + text).split("\n\n")
            for lines in events:
                fields = dict(line.split(": ", 1) for line in lines.split("\n") if ": " in line)
                if "data" in fields:
                    self.event(fields.get("id"), fields["data"])


async def _ask(client: httpx.AsyncClient, messages: list[dict[str, Any]], tally: Tally) -> Heard:
    """Run one streamed chat completion, and reconnect each time the connection ends; RuntimeError if it fails."""
    body = {
        "model": "auto", "messages": messages, "tools": _TOOLS, "temperature": 0, "max_tokens": 160, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    times, stream, key = [time.monotonic()], _Stream(), uuid.uuid4().hex
    left = _PATIENCE_S
    while not stream.done and left > 0:
        headers = {"idempotency-key": key}
        if stream.last_id is not None:
            headers["last-event-id"] = stream.last_id
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                if response.status_code != 503:  # a router that has just started answers 503
                    await stream.read(response, times)
        except httpx.TransportError:
            pass
        if not stream.done:
            tally.resumed += 1
            left -= _PAUSE_S
            await asyncio.sleep(_PAUSE_S)
    if not stream.done:
        raise RuntimeError("the stream ended without [DONE]")
    message: dict[str, Any] = {"role": "assistant", "content": stream.content}
    if stream.calls:
        message["tool_calls"] = [
            {"id": f"call_{at}", "type": "function", "function": function}
            for at, function in sorted(stream.calls.items())
        ]
    return Heard(message, stream.finish, stream.tokens, times)


async def _session(client: httpx.AsyncClient, number: int, tally: Tally) -> list[Heard]:
    """Play a conversation of a few turns, answering the model's tool calls."""
    city = _CITIES[number % len(_CITIES)]
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"({number}) What is the weather in {city}?"}]
    heard = []
    for turn in range(_TURNS):
        answer = await _ask(client, messages, tally)
        heard.append(answer)
        messages.append(answer.message)
        calls = answer.message.get("tool_calls", [])
        for call in calls:
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": f"{12 + turn} degrees, rain"})
        if not calls:
            messages.append({"role": "user", "content": f"And tomorrow? ({turn})"})
    return heard


async def _kills(client: httpx.AsyncClient, rng: random.Random, every: float, until: float) -> list[tuple[float, str]]:
    """Kill a leader, a rank or a router, or stop a rank, every `every` seconds; returns the time and kind of each."""
    begun, when = time.monotonic(), list[tuple[float, str]]()
    while time.monotonic() + every < until:
        await asyncio.sleep(every)
        try:
            # A new connection, so that any of the routers may answer.
            async with httpx.AsyncClient(base_url=client.base_url, timeout=60) as fresh:
                status = (await fresh.get("/status")).json()
        except httpx.TransportError:
            continue
        workers = [w for pool in status["pools"].values() for w in pool["workers"] if w["state"] == "live"]
        routers = [(status["router"]["pid"], signal.SIGKILL, "router", "")]
        groups = [
            [(w["pid"], signal.SIGKILL, "leader", f" of {w['id']}")]
            + [(r["pid"], rng.choice((signal.SIGKILL, signal.SIGSTOP)), "rank", f" of {w['id']}") for r in w["ranks"]]
            for w in workers
        ]
        pid, by, what, whose = rng.choice(rng.choice([*groups, routers]))
        print(f"after {time.monotonic() - begun:5.1f} s: {by.name} to a {what}{whose}")
        try:
            os.kill(pid, by)
        except ProcessLookupError:
            continue  # its worker has ended meanwhile
        when.append((time.monotonic(), f"{by.name} to a {what}"))
    return when


async def _under_kills(
    client: httpx.AsyncClient, number: int, expected: list[Heard], until: float, tally: Tally, all_heard: list[Heard]
) -> None:
    while time.monotonic() < until:
        tally.streams += _TURNS
        try:
            heard = await _session(client, number, tally)
        except (RuntimeError, httpx.HTTPError) as error:
            tally.failed.append(f"session {number}: {error or type(error).__name__}")
            continue
        all_heard += heard
        for mine, other in zip(heard, expected, strict=True):
            same = (mine.message, mine.finish, mine.tokens) == (other.message, other.finish, other.tokens)
            tally.different += not same
            if not same:
                print(f"session {number} differs:\n  {other.message}\n  {mine.message}")


async def chaos(client: httpx.AsyncClient, sessions: int, seconds: float, every: float, seed: int) -> Tally:
    """Play the sessions without kills, then for `seconds` with a kill every `every` seconds, and print the results."""
    begun = time.monotonic()
    tally = Tally()
    undisturbed = await asyncio.gather(*(_session(client, n, tally) for n in range(sessions)))
    print(f"{sessions} sessions of {_TURNS} turns undisturbed in {time.monotonic() - begun:.1f} s")
    heard = list[Heard]()
    until = time.monotonic() + seconds
    kills = asyncio.create_task(_kills(client, random.Random(seed), every, until))
    await asyncio.gather(*(_under_kills(client, n, undisturbed[n], until, tally, heard) for n in range(sessions)))
    killed = await kills
    tally.kills = len(killed)
    for answer in heard:
        for kind in {kind for at, kind in killed if answer.times[0] <= at <= answer.times[-1]}:
            longest = max(b - a for a, b in zip(answer.times, answer.times[1:], strict=False))
            tally.pauses.setdefault(kind, []).append(longest)
    print(
        f"{tally.kills} kills, {tally.streams} streams: {len(tally.failed)} failed, {tally.different} differ from "
        f"the undisturbed transcript; clients came back {tally.resumed} times"
    )
    for failure in tally.failed[:10]:
        print(f"  {failure}")
    for kind, pauses in sorted(tally.pauses.items()):
        ordered = sorted(pauses)
        median, p99 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
        print(
            f"{kind}: longest pause of each of the {len(ordered)} streams open then: median {median:.2f} s, "
            f"p99 {p99:.2f} s, most {ordered[-1]:.2f} s"
        )
    return tally


async def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running cluster on this machine; without it one is started")
    parser.add_argument("--sessions", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120.0, help="for how long it kills")
    parser.add_argument("--every", type=float, default=8.0, help="seconds between kills")
    parser.add_argument("--seed", type=int, default=1)
    arguments, serve = parser.parse_known_args()
    serve = ["--decode", "2", "--tp", "2", "--set", "router.replicas=2", *serve]
    async with running_cluster(arguments.url, serve) as url, httpx.AsyncClient(base_url=url, timeout=600) as client:
        tally = await chaos(client, arguments.sessions, arguments.seconds, arguments.every, arguments.seed)
    return 1 if tally.failed or tally.different else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
