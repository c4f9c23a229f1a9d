"""Log-probabilities in the formats of /v1/chat/completions and /v1/completions."""

from collections.abc import Iterable

from router.api.answers.generated import ChatLogprobs, TokenLogprobs, TopLogprob
from router.api.answers.generated import CompletionLogprobs as LogprobsJson
from router.relay.choice import Choice, Delta
from router.relay.joined import ShownLogprob
from router.text.detokenizer import Detokenizer
from router.text.tokenizer import Piece, Tokenizer
from wire.protocol import TokenLogprob

# JSON has no infinity; this is what OpenAI sends for it.
_LOWEST = -9999.0


def chat_logprobs(items: Iterable[ShownLogprob], tokenizer: Tokenizer) -> ChatLogprobs:
    """`logprobs` of a chat choice or chunk."""
    return {"content": [_chat_item(item, tokenizer) for item in items], "refusal": None}


def _chat_item(shown: ShownLogprob, tokenizer: Tokenizer) -> TokenLogprobs:
    def entry(piece: Piece, logprob: float) -> TopLogprob:
        return {"token": piece.text, "logprob": max(logprob, _LOWEST), "bytes": list(piece.data)}

    item = shown.item
    piece = tokenizer.piece(item.token_id)
    if shown.start or shown.stop is not None:
        data = piece.data[shown.start : shown.stop]
        piece = Piece(data.decode("utf-8", "replace"), data)
    top = [entry(tokenizer.piece(i), p) for i, p in zip(item.top_ids, item.top_logprobs, strict=True)]
    return {**entry(piece, item.logprob), "top_logprobs": top}


class CompletionLogprobs:
    """`logprobs` of a completion choice or chunk: four arrays with one item per token."""

    def __init__(self) -> None:
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def add_prompt(self, choice: Choice, tokenizer: Tokenizer) -> None:
        """Add the prompt's tokens. The first one has no log-probability, because nothing precedes it."""
        # The text as the echo shows it: markers are shown if the client sent text, but not if it sent ids.
        markers = tokenizer.special if choice.prompt.text is not None else ()
        detokenizer, chars = Detokenizer(tokenizer, markers), 0
        for token_id, item in zip(choice.prompt.token_ids, choice.prompt_logprobs, strict=True):
            self._add(token_id, item, chars, tokenizer)
            chars += len(detokenizer.push((token_id,)))

    def add(self, delta: Delta, tokenizer: Tokenizer, before: int) -> None:
        """Add generated tokens. before: characters of the echoed prompt that precede them."""
        for shown, offset in zip(delta.logprobs, delta.offsets, strict=True):
            self._add(shown.item.token_id, shown.item, before + offset, tokenizer)

    def json(self) -> LogprobsJson:
        """The arrays as a dict for the answer."""
        return {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top,
            "text_offset": self._offsets,
        }

    def _add(self, token_id: int, item: TokenLogprob | None, offset: int, tokenizer: Tokenizer) -> None:
        self._tokens.append(_name(tokenizer.piece(token_id)))
        self._offsets.append(offset)
        if item is None:
            self._logprobs.append(None)
            self._top.append(None)
            return
        self._logprobs.append(max(item.logprob, _LOWEST))
        top = zip(item.top_ids, item.top_logprobs, strict=True)
        self._top.append({_name(tokenizer.piece(i)): max(p, _LOWEST) for i, p in top})


def _name(piece: Piece) -> str:
    """The token's text, or its bytes if these alone are no text: different tokens then stay different keys."""
    if "\ufffd" not in piece.text:
        return piece.text
    return "bytes:" + "".join(f"\\x{b:02x}" for b in piece.data)
