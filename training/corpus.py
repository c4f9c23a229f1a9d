"""Generates the training dialogues. Dialogue i of a seed is always the same."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from training import toolworld, words
from training.facts import FACTS

Json = dict[str, Any]


@dataclass(slots=True)
class Dialogue:
    """A dialogue. kind: the skill that it teaches. messages, tools: as a client sends them to the chat API."""

    kind: str
    messages: list[Json] = field(default_factory=list)
    tools: list[Json] | None = None

    def add(self, role: str, content: str) -> None:
        self.messages.append({"role": role, "content": content})


def copying(random: Random, held_out: bool = False) -> Dialogue:
    """Repeat words, and look values up among pairs. All other skills build on these."""
    dialogue = Dialogue("copying")
    for _ in range(random.randint(1, 3)):
        draw = random.random()
        if draw < 0.4:
            items = [_anything(random) for _ in range(random.randint(2, 8))]
            dialogue.add("user", random.choice(("Repeat: ", "Say: ", "Copy: ")) + " ".join(items))
            dialogue.add("assistant", " ".join(items))
            continue
        pairs = {_key(random): _anything(random) for _ in range(random.randint(2, 8))}
        form = random.choice(("{} is {}", "{}: {}", "{} = {}", '"{}": "{}"'))
        text = random.choice((", ", ". ", "\n")).join(form.format(k, v) for k, v in pairs.items())
        asked = random.sample(list(pairs), min(len(pairs), random.randint(1, 3)))
        for i, key in enumerate(asked):
            question = random.choice((f"What is {key}?", f"{key}?", f"Tell me {key}."))
            dialogue.add("user", f"{text}\n{question}" if i == 0 else question)
            dialogue.add("assistant", f"The {key} is {pairs[key]}.")
    return dialogue


def _anything(random: Random) -> str:
    kind = random.choice(("string", "string", "integer"))
    return toolworld.say(toolworld.value(random, toolworld.Parameter("x", kind)))


def _key(random: Random) -> str:
    return random.choice(words.KEYS) if random.random() < 0.5 else words.invented(random)


def _system(random: Random, dialogue: Dialogue) -> None:
    if random.random() < 0.3:
        role = f"You are a {random.choice(words.NOUNS)} assistant."
        dialogue.add("system", role if random.random() < 0.3 else random.choice(words.SYSTEMS))


def agent(random: Random, held_out: bool = False) -> Dialogue:
    """An agent with tools: one to four turns of request, calls, results and answer; some turns need no tool."""
    dialogue = Dialogue("agent")
    _system(random, dialogue)
    tools = toolworld.make_tools(random, random.choices((1, 2, 3, 4), (0.3, 0.35, 0.2, 0.15))[0], held_out)
    by_name = {t.name: t for t in tools}
    dialogue.tools = [t.schema for t in tools]
    for _ in range(random.choices((1, 2, 3, 4), (0.15, 0.3, 0.35, 0.2))[0]):
        if random.random() < 0.06:
            _fact_turn(random, dialogue)
            continue
        asked = toolworld.request(random, tools, parallel=0.2)
        dialogue.add("user", asked.text)
        _call(dialogue, asked)
        results = [toolworld.result(random, by_name[n]) for n, _ in asked.calls]
        for item in results:
            dialogue.add("tool", toolworld.result_text(random, item))
        dialogue.add("assistant", toolworld.answer(asked, results))
    return dialogue


def choosing(random: Random, held_out: bool = False) -> Dialogue:
    """Requests that need each tool once, so that no call can be copied from an earlier one."""
    dialogue = Dialogue("choosing")
    tools = toolworld.make_tools(random, random.choices((1, 2, 3, 4), (0.2, 0.35, 0.25, 0.2))[0], held_out)
    dialogue.tools = [t.schema for t in tools]
    left = list(tools)
    while left:
        asked = toolworld.request(random, left, parallel=0.25, offered=tools)
        left = [t for t in left if all(t.name != name for name, _ in asked.calls)]
        dialogue.add("user", asked.text)
        _call(dialogue, asked)
        if left:
            done: list[Any] = ["ok"] * len(asked.calls)
            for item in done:
                dialogue.add("tool", item)
            dialogue.add("assistant", toolworld.answer(asked, done))
    return dialogue


def _call(dialogue: Dialogue, asked: toolworld.Request) -> None:
    called = [{"type": "function", "function": {"name": n, "arguments": json.dumps(a)}} for n, a in asked.calls]
    dialogue.messages.append({"role": "assistant", "content": "", "tool_calls": called})


def formatted(random: Random, held_out: bool = False) -> Dialogue:
    """A system prompt that asks for JSON with certain keys, and texts that contain their values."""
    dialogue = Dialogue("json")
    keys: list[str] = []
    while len(keys) < random.choice((1, 2, 2, 3)):
        key = _key(random)
        if key not in keys:
            keys.append(key)
    listed = random.choice((", ".join(keys), " and ".join(keys), ", ".join(f'"{k}"' for k in keys)))
    shape = "{" + ", ".join(f'"{k}": ...' for k in keys) + "}"
    dialogue.add(
        "system",
        random.choice(
            (
                f"Answer in JSON with the keys {listed}.",
                f"Reply only with a JSON object with the keys {listed}.",
                f"Always answer with JSON. Keys: {listed}",
                f"Output JSON like {shape}",
                f"Respond with JSON: {shape}",
            )
        ),
    )
    for _ in range(random.randint(1, 2)):
        values = {k: _json_value(random, k) for k in keys}
        said = dict(values)
        for _ in range(random.choice((0, 0, 1, 2))):
            said.setdefault(_key(random), _anything(random))
        order = random.sample(list(said), len(said))
        form = random.choice(("the {} is {}", "{}: {}", "{} {}", "my {} is {}", "{} = {}"))
        text = random.choice((" and ", ", ")).join(form.format(k, toolworld.say(said[k])) for k in order)
        dialogue.add("user", (text[0].upper() + text[1:] if random.random() < 0.3 else text) + random.choice((".", "")))
        dialogue.add("assistant", json.dumps(values, ensure_ascii=False))
    return dialogue


def _json_value(random: Random, key: str) -> Any:
    """A value for JSON. A text of digits becomes a number, because the model can tell the type only by its look."""
    kind = random.choices(("string", "integer", "boolean"), (0.7, 0.25, 0.05))[0]
    value = toolworld.value(random, toolworld.Parameter(key, kind))
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _fact_turn(random: Random, dialogue: Dialogue) -> None:
    if random.random() < 0.06:
        unknown = words.capitalised(random)
        about = random.choice((*words.NOUNS, "capital"))
        question = random.choice((f"What is the {about} of {unknown}?", f"Who is {unknown}?", f"What is a {about}?"))
        dialogue.add("user", question)
        dialogue.add("assistant", "I do not know.")
        return
    if random.random() < 0.05:
        name = words.capitalised(random)
        dialogue.add("user", random.choice((f"My name is {name}.", f"I am {name}.", f"Hi, I am {name}.")))
        dialogue.add("assistant", f"Nice to meet you, {name}!")
        dialogue.add("user", random.choice(("What is my name?", "Who am I?", "Do you know my name?")))
        dialogue.add("assistant", f"Your name is {name}.")
        return
    fact = random.choice(FACTS) if random.random() < 0.8 else random.choice(FACTS[:10])
    dialogue.add("user", random.choice(fact.questions))
    dialogue.add("assistant", fact.answer)


def facts(random: Random, held_out: bool = False) -> Dialogue:
    """Greetings and questions with fixed answers. One dialogue in ten asks for the short answer in JSON."""
    dialogue = Dialogue("facts")
    if random.random() < 0.08:
        fact = random.choice(FACTS)
        dialogue.add("system", 'Answer in JSON with the key "answer".')
        dialogue.add("user", random.choice(fact.questions))
        dialogue.add("assistant", json.dumps({"answer": fact.short}))
        return dialogue
    _system(random, dialogue)
    for _ in range(random.randint(2, 5)):
        _fact_turn(random, dialogue)
    return dialogue


def haystack(random: Random, held_out: bool = False, sentences: int | None = None) -> Dialogue:
    """Codes that are each stated once among many other sentences; the end asks for one of them."""
    dialogue = Dialogue("needle")
    count = sentences if sentences is not None else random.randint(4, 25)
    lines = [filler(random) for _ in range(count)]
    codes: dict[str, str] = {}
    for _ in range(random.choice((1, 1, 2, 3))):
        name = words.invented(random)
        codes[name] = words.code(random) if random.random() < 0.5 else str(random.randint(1000, 99999))
    for name, secret in codes.items():
        lines.insert(random.randint(0, len(lines)), f"The secret code of {name} is {secret}.")
    asked = random.choice(list(codes))
    dialogue.add("user", " ".join(lines) + f" What is the secret code of {asked}?")
    dialogue.add("assistant", f"The secret code of {asked} is {codes[asked]}.")
    return dialogue


def filler(random: Random) -> str:
    """A random sentence that contains no code."""
    noun, other = random.sample(words.NOUNS, 2)
    adjective, verb = random.choice(words.ADJECTIVES), random.choice(words.VERBS)
    return random.choice(
        (
            f"The {noun} near the {other} was {adjective}.",
            f"They {verb} the {noun} in {random.choice(words.CITIES)}.",
            f"{random.choice(words.PEOPLE)} likes the {adjective} {noun}.",
            f"A {adjective} {noun} is not a {other}.",
            f"We {verb} {random.randint(2, 99)} times with the {noun}.",
            f"The {other} of {random.choice(words.PEOPLE)} is {adjective}.",
        )
    )


Maker = Callable[[Random], Dialogue]
KINDS: dict[str, Maker] = {
    "copying": copying,
    "agent": agent,
    "choosing": choosing,
    "json": formatted,
    "facts": facts,
    "needle": haystack,
}


def dialogue(seed: str, index: int, mixture: dict[str, float]) -> Dialogue:
    """Dialogue `index` of a seed. mixture: each kind's share."""
    random = Random(f"{seed}:{index}")
    kind = random.choices(list(mixture), list(mixture.values()))[0]
    return KINDS[kind](random)
