"""Lowers items to the turns of a neutral request."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from router.api.request import Names, Turn, check_calls
from router.api.responses.calls import lowered_call
from router.errors import Path

NAMES = Names(turns="input", max_tokens="max_output_tokens", result="an output")
_ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
Item = Mapping[str, Any]  # as it is stored


def turns(items: Sequence[Item], earlier: int, instructions: str | None) -> tuple[Turn, ...]:
    """The turns of a conversation, whose first `earlier` items were stored and whose others came with the request.

    Everything that the model wrote up to the next turn of somebody else is one turn, because it was one answer. If
    calls and outputs do not match, the 400 names the item at fault.
    """
    out = [Turn("system", instructions, ("instructions",))] if instructions is not None else []
    for at, item in _made(items, earlier):
        out.append(_turn(item, at))
        if len(out) > 1 and out[-1].role == out[-2].role == "assistant":
            said, more = out[-2:]
            texts = [turn.text for turn in (said, more) if turn.text is not None]
            out[-2:] = [replace(said, text="\n".join(texts) if texts else None, calls=said.calls + more.calls)]
    check_calls(out, NAMES)
    return tuple(out)


def _made(items: Sequence[Item], earlier: int) -> Iterator[tuple[Path, Item]]:
    """The items that become turns, with their indices: all except reasoning and calls that were cut off."""
    answered = {item["call_id"] for item in items if item["type"].endswith("_call_output")}
    for i, item in enumerate(items):
        unanswered = item["type"].endswith("_call") and item["call_id"] not in answered
        cut = unanswered and item["status"] == "incomplete"
        if item["type"] != "reasoning" and not cut:
            # Stored calls and outputs match except at their end, so a fault lies in the items that follow.
            yield ("input", max(i - earlier, 0)), item


def _turn(item: Item, at: Path) -> Turn:
    if item["type"].endswith("_call"):
        return Turn("assistant", None, at, calls=(lowered_call(item, at),))
    if item["type"].endswith("_call_output"):
        return Turn("tool", item["output"], at, call_id=item["call_id"])
    text = "\n".join(part["text"] for part in item["content"])
    return Turn(_ROLES[item["role"]], text, at)
