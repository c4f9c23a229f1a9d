"""Items as the chat messages they stand for, and which of them go when they are too many."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from router.errors import ApiError, invalid

Item = Mapping[str, Any]  # as kept
Turn = dict[str, Any]


def as_chat(items: Sequence[Item], earlier: int, instructions: str | None) -> list[Turn]:
    """The chat messages of a conversation. Its first `earlier` items were kept, the rest came with the request.

    What the model said and called up to the next word of somebody else is one message: so it was one answer. 400
    naming the item at fault where calls and outputs do not match.
    """
    out: list[Turn] = []
    if instructions is not None:
        out.append({"role": "system", "content": instructions})
    spoken: Turn | None = None  # the assistant's message, while more of it may come
    for item in _checked(items, earlier):
        if item["type"] == "reasoning":
            continue
        if item["type"] == "function_call" or item.get("role") == "assistant":
            if spoken is None:
                spoken = {"role": "assistant", "tool_calls": []}
                out.append(spoken)
            _speak(spoken, item)
            continue
        spoken = None
        if item["type"] == "function_call_output":
            out.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        else:
            out.append({"role": item["role"], "content": _said(item)})
    return out


def _speak(spoken: Turn, item: Item) -> None:
    if item["type"] == "function_call":
        function = {"name": item["name"], "arguments": item["arguments"]}
        spoken["tool_calls"].append({"id": item["call_id"], "type": "function", "function": function})
    elif "content" in spoken:
        spoken["content"] += "\n" + _said(item)
    else:
        spoken["content"] = _said(item)


def _said(item: Item) -> str:
    return "\n".join(part["text"] for part in item["content"])


def _checked(items: Sequence[Item], earlier: int) -> Iterator[Item]:
    """The items but for calls that were cut off; each of the others has its output before anything else is said."""
    answered = {item["call_id"] for item in items if item["type"] == "function_call_output"}
    waiting: list[str] = []
    answering = False
    for i, item in enumerate(items):
        match item["type"]:
            case "function_call":
                call_id = item["call_id"]
                if item["status"] == "incomplete" and call_id not in answered:
                    continue
                if answering and waiting:
                    raise _mismatch(i, earlier, f"calls without an output before it: {_few(waiting)}")
                if call_id in waiting:
                    raise _mismatch(i, earlier, f"two calls have the call_id {call_id[:80]!r}")
                waiting.append(call_id)
                answering = False
            case "function_call_output":
                if item["call_id"] not in waiting:
                    raise _mismatch(i, earlier, f"call_id {item['call_id'][:80]!r} answers no open call before it")
                waiting.remove(item["call_id"])
                answering = True
            case "message":
                if waiting and (answering or item["role"] != "assistant"):
                    raise _mismatch(i, earlier, f"calls without an output before it: {_few(waiting)}")
        yield item
    if waiting:
        reason = f"it ends with calls without an output: {_few(waiting)}"
        raise invalid(f"'input': {reason}", "input", "tool_calls_mismatch")


def _few(ids: list[str]) -> str:
    return ", ".join(repr(i[:80]) for i in ids[:4])


def _mismatch(index: int, earlier: int, reason: str) -> ApiError:
    # What was kept had matched but for its end, so the fault shows at what follows.
    param = f"input[{max(index - earlier, 0)}]"
    return invalid(f"'{param}': {reason}", param, "tool_calls_mismatch")


def cuts(messages: Sequence[Turn]) -> list[int]:
    """Where a conversation that is too long may begin anew, first to last: at each user's word after the first.

    What stands before the first (instructions) always stays.
    """
    return [i for i, message in enumerate(messages) if message["role"] == "user"][1:]


def cut_at(messages: Sequence[Turn], begin: int) -> list[Turn]:
    """The conversation without what was said between its instructions and `begin`."""
    head = next(i for i, message in enumerate(messages) if message["role"] not in ("system", "developer"))
    return [*messages[:head], *messages[begin:]]
