"""A checkpoint's tokenizer: converts text to ids and ids to bytes, and knows the end tokens and the template."""

import json
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from router.text.grammar import Marks
from router.text.markers import Markers
from router.text.segments import SegmentCache
from router.text.template import ChatTemplate, Rendered
from wire.tokens import WIDTH, TokenIds

_SEGMENT_BYTES = 64 * 1024 * 1024


class Piece(NamedTuple):
    """One token as text and as bytes. `text` has U+FFFD where the bytes alone are not UTF-8."""

    text: str
    data: bytes


class Encoded(NamedTuple):
    """A conversation's token ids.

    boundaries: the number of tokens up to the end of each turn. The first one is the end of the system prompt and the
    tools, after which prompts with a common prefix differ.
    """

    token_ids: TokenIds
    boundaries: tuple[int, ...]


class Tokenizer:
    """The tokenizer.json of a checkpoint folder, read once.

    visible: for a byte-level vocabulary the bytes of each id, empty for special tokens (which are not shown); None for
    other kinds, whose tokens only `decode` can join. special: the texts of special tokens. eos_ids: the ids that end a
    sequence, from generation_config.json and config.json. template: None if the checkpoint has no chat template. marks:
    tokens like `<this>`.
    """

    def __init__(self, folder: str, segment_bytes: int = _SEGMENT_BYTES) -> None:
        """segment_bytes: memory for conversations' texts and their tokens, for the conversations' next turns."""
        path = Path(folder)
        source = path / "tokenizer.json"
        if not source.is_file():
            raise FileNotFoundError(f"{folder} has no tokenizer.json: point `tokenizer` at a checkpoint folder")
        self._inner = tokenizers.Tokenizer.from_file(str(source))
        self.size = self._inner.get_vocab_size(with_added_tokens=True)
        added = self._inner.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, t in added.items() if t.special)
        self.special = tuple(t.content for t in added.values() if t.special)
        self.marks = Marks({t.content: i for i, t in added.items() if t.content[:1] == "<" and t.content[-1:] == ">"})
        self.visible: list[bytes] | None = None
        self._bytes: list[bytes] = []
        if _is_byte_level(self._inner):
            vocab = {i: token for token, i in self._inner.get_vocab(with_added_tokens=True).items()}
            self._bytes = [_token_bytes(vocab.get(i, "")) for i in range(max(vocab) + 1)]
            self.visible = [b"" if i in self.special_ids else b for i, b in enumerate(self._bytes)]
        self._showing: dict[tuple[str, ...], list[bytes] | None] = {}
        self.eos_ids = _eos_ids(path)
        self._markers = Markers(self._inner)
        self.markers = self._markers.texts
        self.template = ChatTemplate.load(path, self.markers)
        self._segments = SegmentCache(self._encode_segments, segment_bytes)
        self._longest = _longest(self._inner, self._bytes)

    def encode(self, text: str, add_special_tokens: bool) -> TokenIds:
        """Encode a raw text, in which markers become tokens."""
        # Not the library's `encode`, which holds the interpreter's lock while it works.
        (encoding,) = self._inner.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return TokenIds.of(encoding.ids)

    def encode_chat(self, rendered: Rendered) -> Encoded:
        """Encode a conversation, in which only the template's markers become tokens."""
        pieces: list[str | bytes] = []
        ends: list[int] = []  # the number of pieces up to each turn's end
        for i, part in enumerate(self._markers.cut(rendered.text)):
            if i % 2:
                token_id, packed = self._markers.id_of(part)
                pieces.append(packed)
                if token_id in self.eos_ids:
                    ends.append(len(pieces))
            else:
                pieces += rendered.pieces(part)
        encoded = iter(self._segments([piece for piece in pieces if isinstance(piece, str)]))
        ids = [next(encoded) if isinstance(piece, str) else piece for piece in pieces]
        lengths = [0, *accumulate(map(len, ids))]
        return Encoded(TokenIds(b"".join(ids)), tuple(lengths[end] // WIDTH for end in ends))

    def least_tokens(self, characters: int) -> int:
        """The least number of tokens of a text with so many characters; 0 if unknown."""
        return -(-characters // self._longest) if self._longest else 0

    def _encode_segments(self, texts: list[str]) -> list[bytes]:
        encodings = self._markers.plain.encode_batch_fast(texts, add_special_tokens=False)
        return [TokenIds.of(encoding.ids).packed for encoding in encodings]

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Decode a whole sequence. Ids without a token add no text."""
        return self._inner.decode(list(token_ids), skip_special_tokens=skip_special)

    def special_among(self, markers: tuple[str, ...]) -> frozenset[int]:
        """The ids of those markers that are special tokens of this tokenizer."""
        ids = {self._inner.token_to_id(marker) for marker in markers}
        return self.special_ids & ids

    def showing(self, markers: tuple[str, ...]) -> list[bytes] | None:
        """`visible` with the bytes of these markers, even if they are special tokens."""
        if self.visible is None:
            return None
        if markers not in self._showing:
            hidden = self.special_ids - self.special_among(markers)
            self._showing[markers] = [b"" if i in hidden else b for i, b in enumerate(self._bytes)]
        return self._showing[markers]

    def piece(self, token_id: int) -> Piece:
        """One token decoded separately, also a special one."""
        if self.visible is not None:
            data = self._bytes[token_id] if token_id < len(self._bytes) else b""
            return Piece(data.decode("utf-8", "replace"), data)
        text = self.decode([token_id], skip_special=False)
        return Piece(text, text.encode())


def _is_byte_level(inner: tokenizers.Tokenizer) -> bool:
    decoder = json.loads(inner.to_str())["decoder"] or {}
    inside = decoder.get("decoders", [decoder]) if decoder.get("type") == "Sequence" else [decoder]
    return [d.get("type") for d in inside] == ["ByteLevel"]


def _longest(inner: tokenizers.Tokenizer, tokens: Sequence[bytes]) -> int:
    """The bytes of the longest token; 0 if a text may have fewer tokens than its bytes divided by that."""
    takes_space = any(t.lstrip or t.rstrip for t in inner.get_added_tokens_decoder().values())
    shrinks = inner.normalizer is not None or takes_space
    return 0 if shrinks else max(map(len, tokens), default=0)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: each printable Latin-1 character stands for its own byte, the rest for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(rest)}


_ALPHABET = _byte_alphabet()


def _token_bytes(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[c] for c in token)
    except KeyError:
        return token.encode()


def _eos_ids(path: Path) -> tuple[int, ...]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        file = path / name
        content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
        ids = content.get("eos_token_id")
        found.update([ids] if isinstance(ids, int) else ids or [])
    return tuple(sorted(found))
