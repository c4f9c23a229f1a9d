"""Makes up agents' conversations for `benchmarks.gateway`: each turn sends all turns before it and 200 new tokens."""

import base64
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORDS = Path("docs/ARCHITECTURE.md").read_text().split()
# Frequent characters, three bytes each in UTF-8.
_CHINESE = (
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里"
    "所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从"
)
Text = Callable[[random.Random, int], str]


def english(rng: random.Random, characters: int) -> str:
    """Random words of a document, about so many characters."""
    words = []
    while characters > 0:
        words.append(rng.choice(_WORDS))
        characters -= len(words[-1]) + 1
    return " ".join(words)


def chinese(rng: random.Random, characters: int) -> str:
    """Random Chinese characters without spaces."""
    return "".join(rng.choices(_CHINESE, k=characters))


def blob(rng: random.Random, characters: int) -> str:
    """Base64 of random bytes, about so many characters."""
    return base64.b64encode(rng.randbytes(characters * 3 // 4)).decode()


@dataclass(frozen=True, slots=True)
class Session:
    """A kind of conversation.

    text: makes its texts. turns: number of turns before the measured ones. characters: length of each user's message
    and each tool's result in them; more: the same in the measured turns. tools: number of tools; 0 for none.
    """

    name: str
    text: Text
    turns: int
    characters: int
    more: int
    tools: int = 0

    def bodies(self, later: int) -> Iterator[bytes]:
        """Yield the JSON bodies of the first measured turn's request and of the `later` turns after it."""
        rng = random.Random(self.name)
        messages: list[dict[str, Any]] = [{"role": "system", "content": english(rng, 4000)}]
        for turn in range(self.turns):
            messages += self._turn(rng, turn, self.characters)
        tools = [self._tool(rng, n) for n in range(self.tools)]
        for turn in range(later + 1):
            yield json.dumps(
                {"model": "auto", "max_tokens": 2, "messages": messages, **({"tools": tools} if tools else {})}
            ).encode()
            messages += self._turn(rng, self.turns + turn, self.more)

    def _turn(self, rng: random.Random, turn: int, characters: int) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = [{"role": "user", "content": self.text(rng, characters)}]
        if not self.tools:
            return [*said, {"role": "assistant", "content": english(rng, 200)}]
        arguments = json.dumps({"path": english(rng, 40)})
        call = {"id": f"call_{turn}", "type": "function", "function": {"name": "tool_0", "arguments": arguments}}
        called = {"role": "assistant", "content": None, "tool_calls": [call]}
        return [*said, called, {"role": "tool", "tool_call_id": call["id"], "content": self.text(rng, characters)}]

    @staticmethod
    def _tool(rng: random.Random, number: int) -> dict[str, Any]:
        properties = {f"p{n}": {"type": "string", "description": english(rng, 60)} for n in range(6)}
        parameters = {"type": "object", "properties": properties, "required": ["p0"]}
        function = {"name": f"tool_{number}", "description": english(rng, 300), "parameters": parameters}
        return {"type": "function", "function": function}


SESSIONS = (
    Session("60 turns", english, 60, 2950, 350),
    Session("60 turns, 20 tools", english, 60, 1250, 150, tools=20),
    Session("200 turns", english, 200, 3000, 350),
    Session("60 turns of Chinese", chinese, 60, 520, 60),
    Session("60 turns of base64", blob, 60, 1150, 150),
)
