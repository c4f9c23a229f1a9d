"""The cases of evaluation: dialogues of a seed and tool names that training never uses, and the kind of each turn."""

from collections.abc import Iterator
from random import Random

from tokenizers import Tokenizer

from training.corpus import Dialogue, agent, facts, formatted, haystack
from training.facts import FACTS
from training.template import render

SEED = "held-out"
CALLS, PARALLEL, ANSWERS, UNNEEDED = (
    "tool calls",
    "of these, several at once",
    "final answers",
    "no tool needed",
)
FORMAT, FACT, MIXED = "JSON format", "facts", "facts in dialogue"


def dialogues(count: int) -> Iterator[Dialogue]:
    """Yield `count` dialogues of agents, `count` of JSON, half as many of facts, and each wording of each fact."""
    for i in range(count):
        yield agent(Random(f"{SEED}:agent:{i}"), held_out=True)
    for i in range(count):
        yield formatted(Random(f"{SEED}:json:{i}"))
    for i in range(count // 2):
        yield facts(Random(f"{SEED}:facts:{i}"))
    for fact in FACTS:
        for question in fact.questions:
            single = Dialogue(FACT)
            single.add("user", question)
            single.add("assistant", fact.answer)
            yield single


def needle(tokenizer: Tokenizer, tokens: int, index: int) -> Dialogue:
    """A haystack of at most, and nearly, `tokens` tokens. Its kind names its length. index, tokens: seed it."""
    random = Random(f"{SEED}:needle:{tokens}:{index}")
    state = random.getstate()
    sentences = tokens // 9
    while True:
        random.setstate(state)
        made = haystack(random, sentences=sentences)
        length = len(tokenizer.encode(render(made.messages, None)).ids)
        if length <= tokens:
            made.kind = f"needle {tokens}"
            return made
        sentences -= max(1, sentences * (length - tokens) // length)


def turns(dialogue: Dialogue) -> list[tuple[int, str]]:
    """(index in the dialogue, kind of turn) of each message of the assistant."""
    out = []
    for i, message in enumerate(dialogue.messages):
        if message["role"] != "assistant":
            continue
        kind = dialogue.kind
        if kind == "agent":
            kind = ANSWERS if dialogue.messages[i - 1]["role"] == "tool" else UNNEEDED
            if message.get("tool_calls"):
                kind = PARALLEL if len(message["tool_calls"]) > 1 else CALLS
        elif kind == "json":
            kind = FORMAT
        elif kind == "facts" and len(dialogue.messages) > 2:
            kind = MIXED
        out.append((i, kind))
    return out
