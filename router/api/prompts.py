"""Makes the choices of a request: their prompts, checked against the workers' limits, and their sampling."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from msgspec import structs

from router.api.render import TooLong, check_length, conversation_prompt
from router.api.request import Conversation, Names, RawPrompt, RawPrompts, Request, Sampling
from router.errors import ApiError, fault, invalid
from router.relay.choice import Choice, Prompt
from router.relay.fleet import Limits
from router.relay.gateway import Gateway
from router.relay.prefixes import scope_of
from router.relay.recording import Recording
from router.text.grammar import Form, Thinking
from router.text.reader import Reader
from router.text.tokenizer import Tokenizer
from router.text.tool_parser import ToolParser
from router.text.tools.form import answer_form
from wire.protocol import SamplingParams
from wire.tokens import TokenIds

_SEED_MASK = 2**63 - 1
# Tokens that a request reserves of its key's limit if it does not bound its answer.
_OPEN_RESERVE = 1024


async def make_choices(gateway: Gateway, request: Request, tenant: str) -> list[Choice]:
    """Make `n` choices for each prompt, in order; 400 if the workers could not serve them. tenant: the request's."""
    if gateway.config.attachments == "refuse":
        _refuse_attachments(request)
    form = _form(request, gateway.tool_parser)
    await gateway.check(form)
    limits, tokenizer = gateway.limits(), gateway.tokenizer
    prompts = await _prompts(gateway, request, limits, tenant)
    params = _sampling_params(request.sampling, limits, tokenizer)
    if form is not None:
        _check_end(request.sampling, params.stop_token_ids)
    choices: list[Choice] = []
    for prompt in prompts:
        max_tokens = _max_tokens(len(prompt.token_ids), request.sampling, limits, request.names)
        grammar = form.grammar(tokenizer.marks, _thinking(request, prompt)) if form is not None else None
        for _ in range(request.sampling.n):
            index = len(choices)
            seed = (params.seed + index) & _SEED_MASK
            choices.append(
                Choice(
                    index,
                    prompt,
                    structs.replace(params, max_tokens=max(max_tokens, 1), seed=seed, grammar=grammar),
                    tokenizer,
                    stop=request.sampling.stop,
                    reader=_reader(request, prompt, gateway.tool_parser),
                    keep_ids=request.token_ids,
                    form_field=form.param if form is not None else None,
                    names_workers=gateway.config.name_workers,
                    discard=max_tokens == 0,
                    recording=_recording(gateway, request, tenant),
                    reserve=min(max_tokens, request.sampling.max_tokens or _OPEN_RESERVE),
                )
            )
    gateway.metrics.accepted(len(prompt.token_ids) for prompt in prompts)
    return choices


async def _prompts(gateway: Gateway, request: Request, limits: Limits, tenant: str) -> list[Prompt]:
    source, names = request.source, request.names
    try:
        if isinstance(source, RawPrompts):
            size = sum(map(len, source.prompts))
            return await gateway.apart(size, _encoded, source.prompts, gateway.tokenizer, limits)
        context, room = limits.max_model_len, limits.max_model_len - (request.sampling.max_tokens or 1)
        recall = partial(gateway.exact.recall, tenant)
        scope = scope_of(tenant, request.cache_salt, gateway.config.cache_share_all)

        def work() -> Prompt:
            prompt = conversation_prompt(source, names, gateway.tokenizer, recall, context, room)
            rewritten = gateway.renderings.look(scope, prompt.contents, prompt.token_ids, prompt.boundaries)
            return replace(prompt, contents=(), rewritten=rewritten)

        return [await gateway.apart(source.characters, work)]
    except TooLong as error:
        raise _too_long(error.tokens, limits, names) from None


def _encoded(raw: Sequence[RawPrompt], tokenizer: Tokenizer, limits: Limits) -> list[Prompt]:
    out = []
    for i, item in enumerate(raw):
        name = "prompt" if len(raw) == 1 else f"prompt[{i}]"
        if isinstance(item, str):
            check_length(len(item), tokenizer, limits.max_model_len)
            out.append(Prompt(tokenizer.encode(item, add_special_tokens=True), item))
        else:
            if item and (min(item) < 0 or max(item) >= limits.vocab_size):
                raise invalid(f"'{name}' holds a token id outside 0..{limits.vocab_size - 1}", name, "invalid_token_id")
            out.append(Prompt(TokenIds.of(item)))
        if not out[-1].token_ids:
            raise invalid(f"'{name}' is empty", name, "empty_prompt")
    return out


def _refuse_attachments(request: Request) -> None:
    turns = request.source.turns if isinstance(request.source, Conversation) else ()
    for turn in turns:
        if turn.left_out is not None:
            raise fault(turn.left_out, "the model reads text alone", "unsupported_value")


def _form(request: Request, parser: type[ToolParser]) -> Form | None:
    """The form of the answer: that of its content, or tool calls."""
    if isinstance(request.source, RawPrompts):
        return request.form
    tools = request.source.tools
    functions = [tool.function for tool in tools.offered]
    return answer_form(parser, functions, request.form, must_call=tools.must_call, single=tools.single)


def _reader(request: Request, prompt: Prompt, parser: type[ToolParser]) -> Reader | None:
    """The reader that separates reasoning and calls from a choice's text; None if all of it is content."""
    if isinstance(request.source, RawPrompts):
        return None
    tools = request.source.tools
    return Reader(parser() if tools.offered else None, thinking=prompt.thinking, single=tools.single)


def _recording(gateway: Gateway, request: Request, tenant: str) -> Recording | None:
    if isinstance(request.source, RawPrompts):
        return None
    return Recording(partial(gateway.exact.keep, tenant), values=request.names.values)


def _thinking(request: Request, prompt: Prompt) -> Thinking:
    if not isinstance(request.source, Conversation):
        return Thinking.NONE
    if prompt.thinking:
        return Thinking.BEGUN
    return Thinking.MAY if request.source.thinking else Thinking.NONE


def _sampling_params(sampling: Sampling, limits: Limits, tokenizer: Tokenizer) -> SamplingParams:
    """The workers' sampling parameters, without those that differ between choices."""
    return SamplingParams(
        max_tokens=1,
        seed=random.getrandbits(63) if sampling.seed is None else sampling.seed,
        temperature=float(sampling.temperature),
        # No mass at all leaves the best token.
        top_p=float(sampling.top_p) or 1.0,
        top_k=max(sampling.top_k, 0) if sampling.top_p else 1,
        min_p=float(sampling.min_p),
        repetition_penalty=float(sampling.repetition_penalty),
        presence_penalty=float(sampling.presence_penalty),
        frequency_penalty=float(sampling.frequency_penalty),
        logit_bias=_logit_bias(sampling, limits),
        stop_token_ids=_stop_ids(sampling, limits, tokenizer),
        min_tokens=sampling.min_tokens,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
    )


def _max_tokens(prompt_tokens: int, sampling: Sampling, limits: Limits, names: Names) -> int:
    # Agents read this sum to retry with fewer tokens.
    context, asked = limits.max_model_len, sampling.max_tokens
    if prompt_tokens >= context:
        raise _too_long(prompt_tokens, limits, names)
    most = context - prompt_tokens if asked is None else asked
    if prompt_tokens + most > context:
        raise invalid(
            f"the prompt's input length and `{names.max_tokens}` exceed context limit: "
            f"{prompt_tokens} + {asked} > {context}",
            names.max_tokens,
            "context_length_exceeded",
        )
    if sampling.min_tokens > most:
        message = f"'min_tokens' {sampling.min_tokens} exceeds the {most} tokens that may be generated"
        raise invalid(message, "min_tokens")
    return most


def _too_long(tokens: int, limits: Limits, names: Names) -> ApiError:
    # Agents look for "prompt is too long" and then shorten the conversation.
    context = limits.max_model_len
    return invalid(
        f"the prompt is too long: {tokens} tokens > {context - 1} maximum; "
        f"with one to be generated they exceed context limit {context}",
        names.turns,
        "context_length_exceeded",
    )


def _stop_ids(sampling: Sampling, limits: Limits, tokenizer: Tokenizer) -> tuple[int, ...]:
    for i, token_id in enumerate(sampling.stop_token_ids):
        if token_id >= limits.vocab_size:
            name = f"stop_token_ids[{i}]"
            message = f"'{name}' {token_id} is outside 0..{limits.vocab_size - 1}"
            raise invalid(message, name, "invalid_token_id")
    eos = () if sampling.ignore_eos else tokenizer.eos_ids
    return tuple(dict.fromkeys((*eos, *sampling.stop_token_ids)))


def _check_end(sampling: Sampling, stop_ids: tuple[int, ...]) -> None:
    """Constrained output ends when its grammar completes, by a token that may end an answer."""
    if sampling.ignore_eos:
        reason = "the answer is constrained (to a format or to calls) and ends when its grammar completes"
        raise fault(("ignore_eos",), reason)
    if not stop_ids:
        reason = "this checkpoint has no end token, which a constrained answer needs: name one"
        raise fault(("stop_token_ids",), reason)


def _logit_bias(sampling: Sampling, limits: Limits) -> tuple[tuple[int, float], ...]:
    out = []
    for key, value in sampling.logit_bias.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < limits.vocab_size):
            message = f"'logit_bias' key {key[:40]!r} is not a token id in 0..{limits.vocab_size - 1}"
            raise invalid(message, "logit_bias", "invalid_token_id")
        out.append((int(key), float(value)))
    return tuple(out)
