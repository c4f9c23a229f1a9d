"""An agent's loop with OpenAI's SDK: the model calls tools until it answers. `python examples/agent.py [QUESTION]`."""

import json
import os
import sys
from typing import Any

import openai

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "the city"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": PARAMETERS,
        "strict": True,  # the call's arguments follow the schema
    },
}


def get_weather(city: str) -> dict[str, Any]:
    """Return made-up weather, in place of a real tool."""
    return {"city": city, "temperature": 17, "sky": "cloudy"}


def main(question: str) -> None:
    """Ask, run the tools that are called, and print the answer."""
    client = openai.OpenAI(base_url=os.environ.get("LING_URL", "http://127.0.0.1:8000") + "/v1", api_key="-")
    messages: list[Any] = [{"role": "user", "content": question}]
    while True:
        completion = client.chat.completions.create(
            model="auto", messages=messages, tools=[WEATHER], temperature=0, max_tokens=200
        )
        message = completion.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            print(message.content)
            return
        for call in message.tool_calls:
            assert call.type == "function"
            result = get_weather(**json.loads(call.function.arguments))
            print(f"{call.function.name}({call.function.arguments}) -> {result}")
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "What is the weather in Lisbon?")
