"""Renders a conversation to a prompt with the checkpoint's chat template."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from router.api.request import Conversation, Ending, Names, Turn
from router.errors import invalid
from router.relay.choice import Prompt
from router.text.exact import Said
from router.text.renderings import beginnings
from router.text.shield import Exact
from router.text.tokenizer import Tokenizer

Recall = Callable[[Said], bytes | None]
_ON, _OFF = "detailed thinking on", "detailed thinking off"


class TooLong(Exception):
    """The prompt has at least `tokens` tokens; counting stops as soon as it can't fit."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


def conversation_prompt(
    conversation: Conversation,
    names: Names,
    tokenizer: Tokenizer,
    recall: Recall,
    context: int | None = None,
    room: int = 0,
) -> Prompt:
    """Render and encode the prompt; TooLong if it certainly exceeds `context` tokens, before they are counted.

    recall: returns the token ids of an assistant's turn that was answered here; the prompt then has these instead of
    the template's. A conversation that may be shortened loses its oldest turns until it has at most `room` tokens, if
    possible. Rendering takes long: call this through `Gateway.apart`.
    """
    if not conversation.shorten or context is None:
        return _render(conversation, names, tokenizer, recall, context)
    places = _cuts(conversation.turns)
    best = _within(conversation, names, tokenizer, recall, room)
    if best is None:
        low, high = 0, len(places)
        while low < high:
            middle = (low + high) // 2
            shorter = replace(conversation, turns=_cut_at(conversation.turns, places[middle]))
            tried = _within(shorter, names, tokenizer, recall, room)
            if tried is not None:
                best, high = tried, middle
            else:
                low = middle + 1
    return best or _render(conversation, names, tokenizer, recall, context)


def _within(conversation: Conversation, names: Names, tokenizer: Tokenizer, recall: Recall, room: int) -> Prompt | None:
    """The prompt if it has at most `room` tokens, else None."""
    try:
        prompt = _render(conversation, names, tokenizer, recall, room + 1)
    except TooLong:
        return None
    return prompt if len(prompt.token_ids) <= room else None


def _render(
    conversation: Conversation, names: Names, tokenizer: Tokenizer, recall: Recall, context: int | None
) -> Prompt:
    """Render and encode; 400 if the template does not support something in the conversation, or refuses it."""
    template, offered = tokenizer.template, conversation.tools.offered
    if template is None:
        raise invalid("this checkpoint has no chat template: use /v1/completions", names.turns)
    if offered and not template.takes_tools:
        raise invalid("this checkpoint's chat template has no place for 'tools'", "tools")
    messages = _for_template(conversation.turns, recall if template.keeps_turns else lambda said: None)
    if conversation.thinking and template.switches_thinking:
        messages = _with_thinking(messages)
    tools = [dict(tool.shown) for tool in offered] or None
    answer, end = conversation.ending is Ending.ANSWER, ""
    if conversation.ending is Ending.CONTINUE:
        end = uuid.uuid4().hex
        last = _plain(conversation.turns[-1])
        messages[-1] = {**last, "content": f"{last['content']}{end}"}
    try:
        rendered = template.render(messages, tools, dict(conversation.variables), answer=answer, end=end)
    except ValueError as error:
        raise invalid(str(error), names.turns) from error
    check_length(len(rendered.text), tokenizer, context)
    token_ids, boundaries = tokenizer.encode_chat(rendered)
    if not token_ids:
        raise invalid("the chat template makes no tokens of these messages", names.turns, "empty_prompt")
    return Prompt(token_ids, thinking=rendered.thinking, boundaries=boundaries, contents=_contents(conversation))


def _contents(conversation: Conversation) -> tuple[bytes, ...]:
    """Digests of what it begins with: its tools and instructions first."""
    turns = [
        (t.role, t.text, t.name, t.call_id, [(c.id, c.name, c.arguments) for c in t.calls]) for t in conversation.turns
    ]
    said = next((i for i, turn in enumerate(conversation.turns) if turn.role != "system"), len(turns))
    return beginnings(([dict(tool.shown) for tool in conversation.tools.offered], turns[:said]), turns[said:])


def check_length(characters: int, tokenizer: Tokenizer, context: int | None) -> None:
    """TooLong if a text with so many characters has at least `context` tokens in any case."""
    if context is not None and (least := tokenizer.least_tokens(characters)) >= context:
        raise TooLong(least)


def _for_template(turns: Sequence[Turn], recall: Recall) -> list[dict[str, Any]]:
    """The turns as a chat template reads them, with results in the order of their calls.

    The order matters because the model family's format does not name the call that a result belongs to.
    """
    out: list[dict[str, Any]] = []
    order: dict[str, int] = {}
    results: list[Turn] = []
    for turn in turns:
        if turn.role == "tool":
            results.append(turn)
            continue
        out += _in_order(results, order)
        results = []
        order = {call.id: n for n, call in enumerate(turn.calls)}
        out.append(_exact(turn, recall) or _plain(turn))
    return out + _in_order(results, order)


def _in_order(results: Sequence[Turn], order: dict[str, int]) -> list[dict[str, Any]]:
    return [_plain(turn) for turn in sorted(results, key=lambda turn: order[turn.call_id])]


def _exact(turn: Turn, recall: Recall) -> dict[str, Any] | None:
    """The tokens that the model generated for an assistant's turn; None if they are not known."""
    if turn.role != "assistant" or turn.name is not None:
        return None
    packed = recall(Said(turn.text or "", tuple((call.name, call.arguments) for call in turn.calls)))
    return {"role": turn.role, "content": Exact(packed)} if packed is not None else None


def _plain(turn: Turn) -> dict[str, Any]:
    """A turn as a dict without fields that are not set."""
    out: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.name is not None:
        out["name"] = turn.name
    if turn.role == "tool":
        out["tool_call_id"] = turn.call_id
    if turn.calls:
        out["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments or "{}"}}
            for c in turn.calls
        ]
    return out


def _with_thinking(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the model family's reasoning switch to the system text, unless that text has the switch already."""
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": _ON}, *messages]
    if _ON in first["content"] or _OFF in first["content"]:
        return messages
    return [{**first, "content": f"{first['content']}\n{_ON}".lstrip("\n")}, *messages[1:]]


def _cuts(turns: Sequence[Turn]) -> list[int]:
    """The turns at which a shortened conversation may begin, in order: each user's turn after the first."""
    return [i for i, turn in enumerate(turns) if turn.role == "user"][1:]


def _cut_at(turns: Sequence[Turn], begin: int) -> tuple[Turn, ...]:
    """The conversation without the turns between its instructions and turn `begin`. Instructions are always kept."""
    head = next(i for i, turn in enumerate(turns) if turn.role != "system")
    return (*turns[:head], *turns[begin:])
