"""Fake workers that answer with given texts, and a router in front of them for blocking clients."""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from router.text.tokenizer import Tokenizer
from tests.router.conftest import LoopThread, Stage, served
from tests.router.fake_worker import Answer, FakeWorker, Request

END = 1


def scripted(checkpoint: Path, say: Callable[[str], str], tokens_per_step: int = 1) -> list[FakeWorker]:
    """A pair of workers that answers a prompt's text with `say(text)`, one token per byte."""
    tokenizer = Tokenizer(str(checkpoint))

    def answer(request: Request) -> Answer:
        prompt = tokenizer.decode(request.token_ids)
        ids = [*tokenizer.encode(say(prompt), False), END]
        return lambda offset: ids[offset] if offset < len(ids) else END

    options = {"answer": answer, "max_model_len": 4096, "tokens_per_step": tokens_per_step}
    return [FakeWorker("p0", "prefill", **options), FakeWorker("d0", "decode", **options)]  # type: ignore[arg-type]


@contextmanager
def talking(checkpoint: Path, say: Callable[[str], str], tokens_per_step: int = 1) -> Iterator[Stage]:
    """Serve such a pair on its own event loop."""
    thread, opened = LoopThread(), AsyncExitStack()

    async def enter() -> Stage:
        return await opened.enter_async_context(served(checkpoint, scripted(checkpoint, say, tokens_per_step)))

    try:
        yield thread.run(enter())
    finally:
        thread.run(opened.aclose())
        thread.close()


def agent(prompt: str) -> str:
    """An agent's answers: first calls of two tools, then a text with their results."""
    if "<tool>" in prompt:
        results = [part.split("(")[0].split("<")[0] for part in prompt.split("<tool>")[1:]]
        return f"The sum is {' and '.join(results)}."
    return (
        'I look.\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": [1, "x</tool_call>y"]}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    )
