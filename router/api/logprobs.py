"""Log-probabilities in the shapes of the two APIs."""

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
    """`logprobs` of a completion choice or chunk: four arrays with one item a token."""

    def __init__(self) -> None:
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._top: list[dict[str, float] | None] = []
        self._offsets: list[int] = []

    def add_prompt(self, choice: Choice, tokenizer: Tokenizer) -> None:
        """The prompt's own; nothing precedes its first token, so that has none."""
        # As the echo shows it: a client's text with its markers, ids without.
        markers = tokenizer.special if choice.prompt.text is not None else ()
        detokenizer, chars = Detokenizer(tokenizer, markers), 0
        for token_id, item in zip(choice.prompt.token_ids, choice.prompt_logprobs, strict=True):
            self._add(token_id, item, chars, tokenizer)
            chars += len(detokenizer.push((token_id,)))

    def add(self, delta: Delta, tokenizer: Tokenizer, before: int) -> None:
        """Generated ones; `before` characters of echoed prompt stand before them."""
        for shown, offset in zip(delta.logprobs, delta.offsets, strict=True):
            self._add(shown.item.token_id, shown.item, before + offset, tokenizer)

    def json(self) -> LogprobsJson:
        """For encoding."""
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
    """The token's text; where it is no text by itself, its bytes, so that two such tokens stay two keys."""
    if "\ufffd" not in piece.text:
        return piece.text
    return "bytes:" + "".join(f"\\x{b:02x}" for b in piece.data)
