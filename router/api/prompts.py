"""What a request generates from, checked against the workers' limits, as choices."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from router.api.schema import GenerationRequest
from router.errors import invalid
from router.relay.choice import Choice, Prompt
from router.relay.gateway import Limits
from router.text.grammar import Form, Thinking
from router.text.reader import Reader
from router.text.tokenizer import Tokenizer
from wire.protocol import SamplingParams
from wire.tokens import TokenIds

RawPrompt = str | list[int]
_SEED_MASK = 2**63 - 1
# A key is charged so many tokens beforehand for an answer whose length is left open.
_OPEN_RESERVE = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the APIs spell differently.

    max_tokens: None for what the context has left. reader: makes what tells a choice's text apart. form: what the
    text must be; to be checked (`Gateway.check`) before choices are made. thinking: whether some comes before.
    """

    max_tokens: int | None
    logprobs: int | None
    prompt_logprobs: int | None = None
    reader: Callable[[Prompt], Reader] | None = None
    form: Form | None = None
    thinking: Callable[[Prompt], Thinking] = lambda prompt: Thinking.NONE


def raw_prompts(value: Any) -> list[RawPrompt]:
    """The four shapes of a completion's `prompt` as a list of texts and lists of ids."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise invalid("'prompt' must be a string, a list of strings, or token ids", "prompt")
    if not value:
        raise invalid("'prompt' is empty", "prompt", "empty_prompt")
    if _is_ids(value):
        return [value]
    for i, item in enumerate(value):
        if not isinstance(item, str) and not (isinstance(item, list) and _is_ids(item)):
            raise invalid(
                f"'prompt[{i}]' must be a string or a list of token ids, like the other prompts", f"prompt[{i}]"
            )
    return value


def _is_ids(value: list[Any]) -> bool:
    # bool is a subclass of int; the set of types is one pass in C over what may be a million ids.
    return set(map(type, value)) <= {int}


async def encode_prompts(raw: list[RawPrompt], tokenizer: Tokenizer, limits: Limits) -> list[Prompt]:
    """Token ids of each prompt."""
    out = []
    for i, item in enumerate(raw):
        name = "prompt" if len(raw) == 1 else f"prompt[{i}]"
        if isinstance(item, str):
            out.append(Prompt(await tokenizer.encode(item, add_special_tokens=True), item))
        else:
            if item and (min(item) < 0 or max(item) >= limits.vocab_size):
                raise invalid(f"'{name}' holds a token id outside 0..{limits.vocab_size - 1}", name, "invalid_token_id")
            out.append(Prompt(TokenIds.of(item)))
        if not out[-1].token_ids:
            raise invalid(f"'{name}' is empty", name, "empty_prompt")
    return out


def make_choices(
    request: GenerationRequest, prompts: Sequence[Prompt], wanted: Wanted, limits: Limits, tokenizer: Tokenizer
) -> list[Choice]:
    """`n` choices for each prompt, in order."""
    base_seed = random.getrandbits(63) if request.seed is None else request.seed
    stop_ids = _stop_ids(request, limits, tokenizer)
    bias = _logit_bias(request, limits)
    if wanted.form is not None:
        _check_end(request, stop_ids)
    choices: list[Choice] = []
    for prompt in prompts:
        max_tokens = _max_tokens(len(prompt.token_ids), wanted.max_tokens, limits)
        if request.min_tokens > max_tokens:
            raise invalid(
                f"'min_tokens' {request.min_tokens} exceeds the {max_tokens} tokens that may be generated",
                "min_tokens",
            )
        grammar = wanted.form.grammar(tokenizer.marks, wanted.thinking(prompt)) if wanted.form is not None else None
        for _ in range(request.n):
            index = len(choices)
            sampling = SamplingParams(
                max_tokens=max(max_tokens, 1),
                seed=(base_seed + index) & _SEED_MASK,
                temperature=float(request.temperature),
                top_p=float(request.top_p),
                top_k=max(request.top_k, 0),
                min_p=float(request.min_p),
                repetition_penalty=float(request.repetition_penalty),
                presence_penalty=float(request.presence_penalty),
                frequency_penalty=float(request.frequency_penalty),
                logit_bias=bias,
                stop_token_ids=stop_ids,
                min_tokens=request.min_tokens,
                logprobs=wanted.logprobs,
                prompt_logprobs=wanted.prompt_logprobs,
                grammar=grammar,
            )
            choices.append(
                Choice(
                    index,
                    prompt,
                    sampling,
                    tokenizer,
                    stop=request.stop,
                    reader=wanted.reader(prompt) if wanted.reader is not None else None,
                    keep_ids=request.return_token_ids,
                    discard=max_tokens == 0,
                    reserve=max_tokens if wanted.max_tokens is not None else min(max_tokens, _OPEN_RESERVE),
                )
            )
    return choices


def _max_tokens(prompt_tokens: int, asked: int | None, limits: Limits) -> int:
    # Agents look for "prompt is too long" to shorten the conversation by themselves, and for the sum to ask again for
    # less.
    context = limits.max_model_len
    if prompt_tokens >= context:
        raise invalid(
            f"the prompt is too long: {prompt_tokens} tokens > {context - 1} maximum; "
            f"with one to be generated they exceed context limit {context}",
            "prompt",
            "context_length_exceeded",
        )
    if asked is None:
        return context - prompt_tokens
    if prompt_tokens + asked > context:
        raise invalid(
            f"the prompt's input length and `max_tokens` exceed context limit: {prompt_tokens} + {asked} > {context}",
            "max_tokens",
            "context_length_exceeded",
        )
    return asked


def _stop_ids(request: GenerationRequest, limits: Limits, tokenizer: Tokenizer) -> tuple[int, ...]:
    for i, token_id in enumerate(request.stop_token_ids):
        if token_id >= limits.vocab_size:
            raise invalid(
                f"'stop_token_ids[{i}]' {token_id} is outside 0..{limits.vocab_size - 1}",
                f"stop_token_ids[{i}]",
                "invalid_token_id",
            )
    eos = () if request.ignore_eos else tokenizer.eos_ids
    return tuple(dict.fromkeys((*eos, *request.stop_token_ids)))


def _check_end(request: GenerationRequest, stop_ids: tuple[int, ...]) -> None:
    """What has a form ends where it is whole."""
    if request.ignore_eos:
        reason = "the answer has a form (a format, or calls of given functions), and ends where that is whole"
        raise invalid(f"'ignore_eos': {reason}", "ignore_eos")
    if not stop_ids:
        reason = "this checkpoint names no token that ends an answer, as one of a given form must: send one"
        raise invalid(f"'stop_token_ids': {reason}", "stop_token_ids")


def _logit_bias(request: GenerationRequest, limits: Limits) -> tuple[tuple[int, float], ...]:
    out = []
    for key, value in request.logit_bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < limits.vocab_size):
            raise invalid(
                f"'logit_bias' key {key[:40]!r} is not a token id in 0..{limits.vocab_size - 1}",
                "logit_bias",
                "invalid_token_id",
            )
        out.append((int(key), float(value)))
    return tuple(out)
