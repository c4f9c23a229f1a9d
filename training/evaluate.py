"""Measures how many turns a checkpoint gets right: `python -m training.evaluate`, with `--url` through a cluster.

Without `--url` it runs the trainable twin. A turn is right if each of its tokens is the most likely one after the
expected tokens before it, which means that greedy decoding gives exactly the expected turn. With `--url` the cluster
decodes each turn, and calls are compared as parsed JSON.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
from tokenizers import Tokenizer

from training import cases
from training.batches import Encoder
from training.corpus import Dialogue
from training.export import FOLDER
from training.layout import load
from training.model import Nano

Json = dict[str, Any]


class Tally:
    """Counts correct turns by kind, and keeps a few failures to show."""

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.failures: list[str] = []

    def add(self, kind: str, right: bool, wanted: str, got: str) -> None:
        """Count a turn. A turn with several calls also counts as one with calls. wanted, got: to show a failure."""
        for name in {kind, cases.CALLS} if kind == cases.PARALLEL else {kind}:
            self.asked[name] += 1
            self.right[name] += right
        if not right:
            self.failures.append(f"{kind}: wanted {wanted!r}, got {got!r}")

    def show(self) -> None:
        """Print the share of correct turns of each kind."""
        for kind in self.asked:
            share = 100 * self.right[kind] / self.asked[kind]
            print(f"{kind:28} {share:6.1f} %   {self.right[kind]} of {self.asked[kind]}")


def _spans(mask: list[bool]) -> list[tuple[int, int]]:
    starts = [i for i, spoken in enumerate(mask) if spoken and not (i and mask[i - 1])]
    ends = [i + 1 for i, spoken in enumerate(mask) if spoken and not (i + 1 < len(mask) and mask[i + 1])]
    return list(zip(starts, ends, strict=True))


@torch.no_grad()
def on_twin(model: Nano, tokenizer: Tokenizer, asked: Iterator[Dialogue], tally: Tally) -> None:
    """Count every assistant turn by the twin, then print the tally, the MTP layer's acceptance and experts' loads."""
    encoder = Encoder(tokenizer)
    accepted = drafted = 0
    for experts in model.experts():
        experts.load.zero_()
    for dialogue in asked:
        ids, mask = encoder(dialogue)
        tokens = torch.tensor([ids])
        hidden = model(tokens)
        spans = _spans(mask)
        best = model.lm_head(hidden[0]).argmax(-1)
        ahead = model.lm_head(model.ahead(tokens, hidden)[0]).argmax(-1)
        for (start, end), (_, kind) in zip(spans, cases.turns(dialogue), strict=True):
            got, wanted = best[start - 1 : end - 1], tokens[0, start:end]
            right = bool((got == wanted).all())
            tally.add(kind, right, tokenizer.decode(wanted.tolist()), tokenizer.decode(got.tolist()))
            # Row t of the MTP layer drafts token t + 2; the model's row t gives token t + 1. A turn's first token has
            # no draft.
            accepted += int((ahead[start - 1 : end - 2] == got[1:]).sum())
            drafted += end - start - 1
    tally.show()
    print(f"{'MTP first draft accepted':28} {100 * accepted / max(drafted, 1):6.1f} %   {accepted} of {drafted}")
    shares = torch.stack([e.load / e.load.mean() for e in model.experts()])
    print(f"{'least expert load / even':28} {100 * float(shares[:-1].min()):6.1f} %")
    print(f"{'least MTP expert / even':28} {100 * float(shares[-1].min()):6.1f} %")


def over_http(client: httpx.Client, asked: Iterator[Dialogue], tally: Tally, streams: int, strict: bool) -> None:
    """Ask a running cluster for each assistant turn, greedily, after the expected turns before it; print the tally.

    streams: requests at once. strict: mark tools as strict, and ask for JSON by `response_format` too. A refused
    request raises httpx.HTTPStatusError.
    """
    served = client.get("/v1/models").raise_for_status().json()["data"][0]["id"]

    def ask(turn: tuple[Dialogue, int, str]) -> tuple[str, Json, Json]:
        dialogue, index, kind = turn
        body: Json = {
            "model": served,
            "messages": with_ids(dialogue.messages[:index]),
            "temperature": 0,
            "max_tokens": 256,
        }
        if dialogue.tools:
            body["tools"] = [strict_tool(t) for t in dialogue.tools] if strict else dialogue.tools
        if strict and kind == cases.FORMAT:
            body["response_format"] = {"type": "json_object"}
        reply = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        return kind, dialogue.messages[index], reply["choices"][0]["message"]

    turns = [(dialogue, index, kind) for dialogue in asked for index, kind in cases.turns(dialogue)]
    with ThreadPoolExecutor(streams) as pool:
        for kind, wanted, got in pool.map(ask, turns):
            if wanted.get("tool_calls"):
                right = _calls(got) == _calls(wanted)
            else:
                right = not got.get("tool_calls") and (got.get("content") or "").strip() == wanted["content"]
            tally.add(kind, right, json.dumps(wanted), json.dumps(got))
    tally.show()


def strict_tool(tool: Json) -> Json:
    """The tool marked as strict, with all its arguments required."""
    function = tool["function"]
    schema = function["parameters"]
    closed = schema | {"required": list(schema["properties"]), "additionalProperties": False}
    return tool | {"function": function | {"strict": True, "parameters": closed}}


def with_ids(messages: list[Json]) -> list[Json]:
    """The messages with call ids, which the API requires although the template does not render them."""
    out: list[Json] = []
    waiting: list[str] = []
    for i, message in enumerate(messages):
        if message.get("tool_calls"):
            waiting = [f"call_{i}_{j}" for j in range(len(message["tool_calls"]))]
            calls = [c | {"id": name} for c, name in zip(message["tool_calls"], waiting, strict=True)]
            out.append(message | {"tool_calls": calls})
        elif message["role"] == "tool":
            out.append(message | {"tool_call_id": waiting.pop(0)})
        else:
            out.append(message)
    return out


def _calls(message: Json) -> list[tuple[str, Any]]:
    """(name, arguments) of each call. Arguments that are not valid JSON stay text."""
    out = []
    for call in message.get("tool_calls") or []:
        text = call["function"]["arguments"]
        try:
            out.append((call["function"]["name"], json.loads(text)))
        except ValueError:
            out.append((call["function"]["name"], text))
    return out


def _asked(tokenizer: Tokenizer, count: int, needles: int) -> Iterator[Dialogue]:
    yield from cases.dialogues(count)
    for tokens in (2048, 6000):
        for i in range(needles):
            yield cases.needle(tokenizer, tokens, i)


def main() -> None:
    """Parse the command line, evaluate, and print the tally and the failures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=FOLDER, help="the checkpoint's folder")
    parser.add_argument("--url", help="ask the cluster at this URL, e.g. http://127.0.0.1:8000, instead of the twin")
    parser.add_argument("--count", type=int, default=200, help="dialogues of each kind")
    parser.add_argument("--needles", type=int, default=40, help="haystacks of each length")
    parser.add_argument("--failures", type=int, default=0, help="number of failures to print")
    parser.add_argument("--streams", type=int, default=16, help="requests at once, with --url")
    parser.add_argument("--strict", action="store_true", help="with --url: tools marked strict, JSON as a format")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    tally = Tally()
    if args.url:
        with httpx.Client(base_url=args.url, timeout=600) as client:
            over_http(client, _asked(tokenizer, args.count, args.needles), tally, args.streams, args.strict)
    else:
        torch.set_num_threads(args.threads)
        on_twin(load(args.model), tokenizer, _asked(tokenizer, args.count, args.needles), tally)
    for failure in tally.failures[: args.failures]:
        print(failure)


if __name__ == "__main__":
    main()
