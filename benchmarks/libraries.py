"""Runs client libraries against a running cluster, as docs/CLIENTS.md describes: `python -m benchmarks.libraries URL`.

Each installed library asks for an answer, a stream, a tool call and a structured answer, as far as it supports them.
Only the kind of result is checked, because a small model's words are not predictable. A library that is not installed
is skipped, and the command that installs it is printed. `benchmarks/libraries.mjs` does the same for Node's libraries.
"""

import argparse
import asyncio
import importlib.metadata
import importlib.util
import json
import sys
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import BaseModel

_PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris"]}}, "required": ["city"]}
_SAY = "Say hello."


class Mood(BaseModel):
    """The schema of a structured answer."""

    mood: Literal["good", "bad"]


class Failure(Exception):
    """A library gave a wrong result."""


def _expect(met: object, what: str) -> None:
    if not met:
        raise Failure(what)


def openai(url: str, model: str) -> str:
    """Try OpenAI's SDK: chat, completions, responses, files and batches. Returns what it tried."""
    import openai as library

    client: Any = library.OpenAI(base_url=f"{url}/v1", api_key="x")
    messages = [{"role": "user", "content": _SAY}]
    said = client.chat.completions.create(model=model, messages=messages, max_tokens=20)
    _expect(said.choices[0].message.content, "no text")
    parts = list(client.chat.completions.create(model=model, messages=messages, max_tokens=20, stream=True))
    _expect("".join(p.choices[0].delta.content or "" for p in parts if p.choices), "no streamed text")
    tool = {"type": "function", "function": {"name": "weather", "parameters": _PARAMETERS, "strict": True}}
    called = client.chat.completions.create(model=model, messages=messages, tools=[tool], tool_choice="required")
    _expect(json.loads(called.choices[0].message.tool_calls[0].function.arguments) == {"city": "Paris"}, "no call")
    parsed = client.chat.completions.parse(model=model, messages=messages, response_format=Mood)
    _expect(isinstance(parsed.choices[0].message.parsed, Mood), "no parsed answer")
    _expect(client.completions.create(model=model, prompt="Hello").choices[0].text, "no completion")
    answer = client.responses.create(model=model, input=_SAY, max_output_tokens=20)
    _expect(answer.output_text, "no response")
    later = client.responses.create(model=model, input=_SAY, previous_response_id=answer.id, max_output_tokens=20)
    _expect(later.output_text, "no response after a kept one")
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": model, "messages": messages, "max_tokens": 5}}  # fmt: skip
    file = client.files.create(file=("lines.jsonl", json.dumps(line).encode() + b"\n"), purpose="batch")
    window: Any = "24h"
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window=window)
    _expect(client.batches.retrieve(batch.id).id == batch.id, "no batch")
    client.batches.cancel(batch.id)
    return "chat, stream, call, parse, completions, responses, files, batches"


def anthropic(url: str, model: str) -> str:
    """Try Anthropic's SDK: messages, count_tokens and batches. Returns what it tried."""
    import anthropic as library

    client: Any = library.Anthropic(base_url=url, api_key="x")
    messages = [{"role": "user", "content": _SAY}]
    _expect(client.messages.create(model=model, messages=messages, max_tokens=20).content[0].text, "no text")
    with client.messages.stream(model=model, messages=messages, max_tokens=20) as stream:
        _expect("".join(stream.text_stream), "no streamed text")
    tool = {"name": "weather", "input_schema": _PARAMETERS, "strict": True}
    called = client.messages.create(
        model=model, messages=messages, max_tokens=60, tools=[tool], tool_choice={"type": "any"}
    )
    _expect(called.content[0].input == {"city": "Paris"}, "no call")
    _expect(client.messages.count_tokens(model=model, messages=messages).input_tokens > 0, "no count")
    asked = {"custom_id": "a", "params": {"model": model, "messages": messages, "max_tokens": 5}}
    batch = client.messages.batches.create(requests=[asked])
    _expect(client.messages.batches.retrieve(batch.id).id == batch.id, "no batch")
    client.messages.batches.cancel(batch.id)
    return "messages, stream, call, count_tokens, batches"


def openai_agents(url: str, model: str) -> str:
    """Try OpenAI's Agents SDK: its chat and its responses model, each with a tool and a typed answer."""
    import agents as library
    from openai import AsyncOpenAI

    library.set_tracing_disabled(True)
    called = []

    def weather(city: Literal["Paris"]) -> str:
        """Tell the weather."""
        called.append(city)
        return "sunny"

    async def run(kind: Any) -> None:
        chosen = kind(model=model, openai_client=AsyncOpenAI(base_url=f"{url}/v1", api_key="x"))
        settings = library.ModelSettings(max_tokens=60)
        plain: Any = library.Agent(name="a", model=chosen, model_settings=settings)
        _expect((await library.Runner.run(plain, _SAY)).final_output, f"{kind.__name__}: no text")
        typed: Any = library.Agent(name="a", model=chosen, output_type=Mood, model_settings=settings)
        mood = (await library.Runner.run(typed, _SAY)).final_output
        _expect(isinstance(mood, Mood), f"{kind.__name__}: no typed answer")
        forced = library.ModelSettings(tool_choice="required", max_tokens=60)
        user: Any = library.Agent(name="a", model=chosen, tools=[library.function_tool(weather)], model_settings=forced)
        before = len(called)
        await library.Runner.run(user, _SAY)
        _expect(len(called) > before, f"{kind.__name__}: the tool was not called")
        streamed = library.Runner.run_streamed(plain, _SAY)
        _expect([event async for event in streamed.stream_events()], f"{kind.__name__}: no events")

    for kind in (library.OpenAIChatCompletionsModel, library.OpenAIResponsesModel):
        asyncio.run(run(kind))
    return "chat and responses: text, typed, tool, stream"


def langchain(url: str, model: str) -> str:
    """Try LangChain's chat models for OpenAI's and for Anthropic's API."""
    from langchain_anthropic import ChatAnthropic
    from langchain_openai import ChatOpenAI

    tool = {"type": "function", "function": {"name": "weather", "description": "It tells.", "parameters": _PARAMETERS}}
    given: dict[str, Any] = {"model": model, "api_key": "x", "max_tokens": 60}
    makes: dict[str, Any] = {
        "ChatOpenAI": ChatOpenAI(**given, base_url=f"{url}/v1", stream_usage=True),
        "ChatAnthropic": ChatAnthropic(**given, base_url=url),
    }
    for name, chat in makes.items():
        _expect(chat.invoke(_SAY).content, f"{name}: no text")
        whole = None
        for part in chat.stream(_SAY):
            whole = part if whole is None else whole + part
        _expect(whole is not None and whole.usage_metadata["output_tokens"] > 0, f"{name}: no streamed usage")
        said = chat.bind_tools([tool], tool_choice="any").invoke(_SAY)
        _expect(said.tool_calls[0]["name"] == "weather", f"{name}: no call")
        method = "json_schema" if name == "ChatOpenAI" else "function_calling"
        _expect(isinstance(chat.with_structured_output(Mood, method=method).invoke(_SAY), Mood), f"{name}: no value")
    return "ChatOpenAI and ChatAnthropic: text, stream with usage, call, structured"


def litellm(url: str, model: str) -> str:
    """Try LiteLLM's providers hosted_vllm, openai and anthropic."""
    import litellm as library

    messages = [{"role": "user", "content": _SAY}]
    tool = {"type": "function", "function": {"name": "weather", "parameters": _PARAMETERS}}
    for provider, base in (("hosted_vllm", f"{url}/v1"), ("openai", f"{url}/v1"), ("anthropic", url)):
        given: dict[str, Any] = {"model": f"{provider}/{model}", "api_base": base, "api_key": "x", "max_tokens": 60}
        said: Any = library.completion(messages=messages, **given)
        _expect(said.choices[0].message.content, f"{provider}: no text")
        parts: Any = library.completion(messages=messages, stream=True, **given)
        _expect("".join(p.choices[0].delta.content or "" for p in parts), f"{provider}: no streamed text")
        called: Any = library.completion(messages=messages, tools=[tool], tool_choice="required", **given)
        _expect(called.choices[0].message.tool_calls, f"{provider}: no call")
        typed: Any = library.completion(messages=messages, response_format=Mood, **given)
        Mood.model_validate_json(typed.choices[0].message.content)
    return "hosted_vllm, openai and anthropic: text, stream, call, structured"


def pydantic_ai(url: str, model: str) -> str:
    """Try Pydantic AI's models for OpenAI's and for Anthropic's API."""
    from anthropic import AsyncAnthropic
    from pydantic_ai import Agent, ToolOutput
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.anthropic import AnthropicProvider
    from pydantic_ai.providers.openai import OpenAIProvider

    async def run() -> None:
        theirs: tuple[Any, ...] = (
            OpenAIChatModel(model, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="x")),
            AnthropicModel(
                model, provider=AnthropicProvider(anthropic_client=AsyncAnthropic(base_url=url, api_key="x"))
            ),
        )
        for chosen in theirs:
            name = type(chosen).__name__
            settings: Any = {"max_tokens": 60}
            plain: Any = Agent(chosen, model_settings=settings)
            _expect((await plain.run(_SAY)).output, f"{name}: no text")
            async with plain.run_stream(_SAY) as stream:
                _expect([part async for part in stream.stream_text(delta=True)], f"{name}: no streamed text")
            typed: Any = Agent(chosen, output_type=ToolOutput(Mood), model_settings=settings)
            _expect(isinstance((await typed.run(_SAY)).output, Mood), f"{name}: no typed answer")

    asyncio.run(run())
    return "OpenAI's and Anthropic's: text, stream, typed"


def instructor(url: str, model: str) -> str:
    """Try Instructor's modes TOOLS_STRICT and JSON_SCHEMA."""
    import instructor as library
    import openai as vendor

    for mode in (library.Mode.TOOLS_STRICT, library.Mode.JSON_SCHEMA):
        client: Any = library.from_openai(vendor.OpenAI(base_url=f"{url}/v1", api_key="x"), mode=mode)
        messages = [{"role": "user", "content": _SAY}]
        value = client.chat.completions.create(model=model, messages=messages, response_model=Mood, max_tokens=60)
        _expect(isinstance(value, Mood), f"{mode}: no value")
    return "TOOLS_STRICT, JSON_SCHEMA"


def crewai(url: str, model: str) -> str:
    """Try CrewAI with one agent and one task."""
    import crewai as library

    model_of: Any = library.LLM(model=f"hosted_vllm/{model}", base_url=f"{url}/v1", api_key="x", max_tokens=60)
    agent: Any = library.Agent(role="greeter", goal="greet", backstory="You greet.", llm=model_of, max_iter=2)
    task: Any = library.Task(description=_SAY, expected_output="A greeting.", agent=agent)
    _expect(str(library.Crew(agents=[agent], tasks=[task]).kickoff()), "no text")
    return "a crew of one"


# For each library: the function that tries it, the name it is imported by, and the packages that pip installs.
LIBRARIES: dict[str, tuple[Callable[[str, str], str], str, str]] = {
    "openai": (openai, "openai", "openai"),
    "anthropic": (anthropic, "anthropic", "anthropic"),
    "openai-agents": (openai_agents, "agents", "openai-agents"),
    "langchain-openai": (langchain, "langchain_anthropic", "langchain-openai langchain-anthropic"),
    "litellm": (litellm, "litellm", "litellm"),
    "pydantic-ai-slim": (pydantic_ai, "pydantic_ai", "'pydantic-ai-slim[openai,anthropic]'"),
    "instructor": (instructor, "instructor", "instructor"),
    "crewai": (crewai, "crewai", "crewai"),
}


def main(arguments: Sequence[str]) -> int:
    """Try the chosen libraries and print their outcomes; returns 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--only", choices=list(LIBRARIES), action="append")
    asked = parser.parse_args(arguments)
    url = asked.url.rstrip("/")
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    failed = 0
    for name, (attempt, module, install) in LIBRARIES.items():
        if asked.only and name not in asked.only:
            continue
        if importlib.util.find_spec(module) is None:
            print(f"{name}: skipped: not installed; pip install {install}", flush=True)
            continue
        named = f"{name} {importlib.metadata.version(name)}"
        try:
            print(f"{named}: worked: {attempt(url, model)}", flush=True)
        except Exception as error:
            failed = 1
            print(f"{named}: FAILED: {type(error).__name__}: {str(error)[:600]}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
