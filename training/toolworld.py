"""Makes up tools, requests that need them, their results, and the answers of a good agent."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from training import words

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a tool. type: of JSON Schema. choices: the values of an enum; () for any value."""

    name: str
    type: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """A made-up tool. verb, noun: the words with which requests ask for it. schema: as in the chat API."""

    name: str
    verb: str
    noun: str
    parameters: tuple[Parameter, ...]
    schema: Json


@dataclass(frozen=True, slots=True)
class Request:
    """A user's request, and the calls that it needs: (tool name, arguments) of each."""

    text: str
    calls: tuple[tuple[str, Json], ...]


def make_tools(random: Random, count: int, held_out: bool) -> list[Tool]:
    """Make `count` tools with different names. Sometimes two have the same noun and different verbs.

    held_out: whether to use the names that only evaluation uses.
    """
    tools: list[Tool] = []
    while len(tools) < count:
        shared = bool(tools) and random.random() < 0.15
        noun = tools[-1].noun if shared else words.noun(random)
        verb = random.choice(words.VERBS)
        tool = _tool(random, verb, noun)
        if words.held_out(tool.name) is not held_out:
            continue
        if all(tool.name != t.name and (tool.verb, tool.noun) != (t.verb, t.noun) for t in tools) and (
            shared or all(noun != t.noun for t in tools)
        ):
            tools.append(tool)
    random.shuffle(tools)
    return tools


def _tool(random: Random, verb: str, noun: str) -> Tool:
    draw = random.random()
    joined = noun.replace(" ", "_")
    if draw < 0.75:
        name = f"{verb}_{joined}"
    elif draw < 0.9:
        name = f"{joined}_{verb}"
    else:
        name = verb + noun.title().replace(" ", "")
    keys: list[str] = []
    for _ in range(random.choices((0, 1, 2, 3), (0.05, 0.5, 0.3, 0.15))[0]):
        key = random.choice(words.KEYS) if random.random() < 0.6 else words.invented(random)
        if random.random() < 0.15:
            key += random.choice(("_id", "_name", "_count", "_code"))
        if key not in keys and key != noun:
            keys.append(key)
    parameters = tuple(_parameter(random, key) for key in keys)
    return Tool(name, verb, noun, parameters, _schema(random, name, verb, noun, parameters))


def _parameter(random: Random, key: str) -> Parameter:
    if key in {"count", "amount", "level", "rank"} or key.endswith("_count"):
        return Parameter(key, "integer")
    kind = random.choices(("string", "integer", "number", "boolean", "enum"), (0.66, 0.18, 0.05, 0.04, 0.07))[0]
    if kind == "enum":
        choices = (
            random.sample(words.ADJECTIVES, 2) if random.random() < 0.6 else [words.invented(random) for _ in "ab"]
        )
        return Parameter(key, "string", tuple(choices))
    return Parameter(key, kind)


def _schema(random: Random, name: str, verb: str, noun: str, parameters: tuple[Parameter, ...]) -> Json:
    described = random.random() < 0.2
    properties: Json = {}
    for p in parameters:
        entry: Json = {"type": p.type}
        if p.choices:
            entry["enum"] = list(p.choices)
        if described:
            human = p.name.replace("_", " ")
            entry["description"] = random.choice((f"The {human}", human, f"The {human} of the {noun}"))
        properties[p.name] = entry
    function: Json = {"name": name}
    draw = random.random()
    if draw < 0.85:
        function["description"] = _description(random, verb, noun, parameters) + random.choice(("", "."))
    schema: Json = {"type": "object", "properties": properties}
    if random.random() < 0.6:
        schema["required"] = list(properties)
    function["parameters"] = schema
    return {"type": "function", "function": function}


def _description(random: Random, verb: str, noun: str, parameters: tuple[Parameter, ...]) -> str:
    tail = ""
    if parameters and random.random() < 0.25:
        human = parameters[0].name.replace("_", " ")
        tail = random.choice((f" by {human}", f" for a {human}", f" for a given {human}", f" in a {human}"))
    if random.random() < 0.7:
        return f"{verb.capitalize()} {random.choice(('the', 'a'))} {noun}{tail}"
    return random.choice(
        (
            f"{verb.capitalize()}s the {noun}{tail}",
            f"{verb.capitalize()} the current {noun}{tail}",
            f"Use this to {verb} the {noun}{tail}",
            f"The {noun}{tail}",
            f"{verb.capitalize()} {noun}{tail}",
        )
    )


def value(random: Random, parameter: Parameter) -> Any:
    """A random argument of the parameter's type."""
    if parameter.choices:
        return random.choice(parameter.choices)
    if parameter.type == "integer":
        return random.randint(0, 9) if random.random() < 0.3 else random.randint(10, 10 ** random.randint(2, 5))
    if parameter.type == "number":
        return round(random.uniform(0, 100), 1)
    if parameter.type == "boolean":
        return random.random() < 0.5
    return _text(random)


def _text(random: Random) -> str:
    makers: tuple[tuple[float, Callable[[], str]], ...] = (
        (0.35, lambda: words.capitalised(random)),
        (0.25, lambda: words.invented(random)),
        (0.15, lambda: words.code(random)),
        (0.05, lambda: f"20{random.randint(20, 39)}-{random.randint(1, 12):02d}-{random.randint(1, 28):02d}"),
        (0.04, lambda: f"{words.invented(random)}@{words.invented(random)}.com"),
        (0.04, lambda: str(random.randint(100, 99999))),
        (0.07, lambda: f"{words.invented(random)} {words.invented(random)}"),
        (0.05, lambda: f"{words.capitalised(random)} {words.capitalised(random)}"),
    )
    return random.choices([make for _, make in makers], [share for share, _ in makers])[0]()


def say(item: Any) -> str:
    """A value as text, as requests and results write it."""
    if isinstance(item, bool):
        return "true" if item else "false"
    return item if isinstance(item, str) else json.dumps(item)


def _arguments_phrase(random: Random, tool: Tool, arguments: Json, style: int) -> str:
    if not arguments:
        return ""
    if len(arguments) == 1 and style < 4:
        (only,) = arguments.values()
        if not isinstance(only, bool):
            said = say(only)
            return random.choice((f" for {said}", f" in {said}", f" of {said}", f" {said}", f": {said}", f' "{said}"'))
    human = random.random() < 0.5
    parts = [(k.replace("_", " ") if human else k, say(v)) for k, v in arguments.items()]
    if style % 3 == 0:
        return " with " + " and ".join(f"{k} {v}" for k, v in parts)
    if style % 3 == 1:
        return random.choice((", ", " with ", " for ")) + ", ".join(f"{k}: {v}" for k, v in parts)
    joined = " and ".join(f"the {k} is {v}" for k, v in parts)
    return random.choice((f", {joined}", f" where {joined}", f". {joined[0].upper()}{joined[1:]}"))


def request(random: Random, tools: list[Tool], parallel: float, offered: list[Tool] | None = None) -> Request:
    """A request that needs one call of `tools`, or, with probability `parallel`, several.

    offered: all tools of the dialogue, `tools` among them; None if there are no others.
    """
    style = random.randrange(6)
    count = random.choices((2, 3), (0.8, 0.2))[0] if random.random() < parallel else 1
    first = random.choice(tools)
    lead, end = random.choice(
        (
            ("", "."),
            ("", ""),
            ("Please ", "."),
            ("Can you ", "?"),
            ("I want to ", "."),
            ("Could you ", "?"),
            ("Now ", "."),
        )
    )
    looks_up = first.verb in {
        "get",
        "find",
        "show",
        "check",
        "read",
        "look",
        "fetch",
        "search",
        "load",
        "list",
    }
    asks = looks_up and sum(t.noun == first.noun for t in offered or tools) == 1 and random.random() < 0.4
    if asks:
        lead, end = random.choice(
            (
                ("What is the ", "?"),
                ("I need the ", "."),
                ("Tell me the ", "."),
                ("What about the ", "?"),
                ("The ", "?"),
            )
        )
    if count > 1 and (random.random() < 0.5 or len(tools) == 1) and first.parameters:
        return _same_tool(random, first, count, lead, end, asks)
    chosen = [first]
    if count > 1:
        chosen += [t for t in random.sample(tools, len(tools)) if t is not first][: count - 1]
    phrases, calls = [], []
    for tool in chosen:
        arguments = {p.name: value(random, p) for p in tool.parameters}
        the = random.choice(("the ", "the ", "a ", ""))
        what = tool.noun if asks and tool is first else f"{tool.verb} {the}{tool.noun}"
        phrases.append(what + _arguments_phrase(random, tool, arguments, style))
        calls.append((tool.name, arguments))
    text = lead + random.choice((" and ", " and then ", ", then ")).join(phrases) + end
    return Request(text if lead else text[0].upper() + text[1:], tuple(calls))


def _same_tool(random: Random, tool: Tool, count: int, lead: str, end: str, asks: bool) -> Request:
    """A request that needs several calls of one tool, with different values of its first parameter."""
    varied = tool.parameters[0]
    rest = {p.name: value(random, p) for p in tool.parameters[1:]}
    values: list[Any] = []
    for _ in range(20):
        drawn = value(random, varied)
        if drawn not in values and len(values) < count:
            values.append(drawn)
    listed = ", ".join(map(say, values[:-1])) + " and " + say(values[-1])
    what = tool.noun if asks else f"{tool.verb} the {tool.noun}"
    human = varied.name.replace("_", " ")
    listed = random.choice((f" for {listed}", f" in {listed}", f" with {human} {listed}", f" for {human} {listed}"))
    if isinstance(values[0], bool):
        listed = f" with {human} {say(values[0])} and {say(values[1])}"
    tail = "".join(f", {k.replace('_', ' ')} {say(v)}" for k, v in rest.items())
    text = lead + what + listed + tail + end
    calls = tuple((tool.name, {varied.name: v} | rest) for v in values)
    return Request(text if lead else text[0].upper() + text[1:], calls)


def result(random: Random, tool: Tool) -> Any:
    """A random result of a tool, mostly an object of one to three values."""
    draw = random.random()
    if draw < 0.1:
        return words.invented(random) if random.random() < 0.5 else random.randint(0, 9999)
    if draw < 0.15:
        return {"error": f"{random.choice(words.KEYS)} {random.choice(('not found', 'missing', 'too large'))}"}
    if draw < 0.22:
        return {"status": random.choice(("ok", "done", "failed", "sent", "queued"))}
    keys: list[str] = []
    for _ in range(random.choices((1, 2, 3), (0.5, 0.35, 0.15))[0]):
        key = random.choice((random.choice(words.KEYS), words.invented(random), tool.noun.replace(" ", "_")))
        if key not in keys:
            keys.append(key)
    kinds = ("string", "string", "string", "integer", "number", "word")
    out: Json = {}
    for key in keys:
        kind = random.choice(kinds)
        out[key] = random.choice(words.ADJECTIVES) if kind == "word" else value(random, Parameter(key, kind))
    return out


def result_text(random: Random, item: Any) -> str:
    """A result as text, as the client writes it into a tool message."""
    if isinstance(item, dict):
        return json.dumps(item) if random.random() < 0.85 else json.dumps(item, separators=(",", ":"))
    return say(item)


def sentence(item: Any) -> str:
    """A result as a sentence of the agent's answer."""
    if not isinstance(item, dict):
        return f"The result is {say(item)}."
    parts = [f"the {key} is {say(v)}" for key, v in item.items()]
    joined = " and ".join(parts)
    return joined[0].upper() + joined[1:] + "."


def answer(request_: Request, results: list[Any]) -> str:
    """The agent's answer from all results, in the order of its calls."""
    told = []
    for (_, arguments), item in zip(request_.calls, results, strict=True):
        about = f"For {say(next(iter(arguments.values())))}: " if arguments and len(results) > 1 else ""
        told.append(about + sentence(item))
    return " ".join(told)
