"""Builds ling-nano's tokenizer: byte-level BPE that splits a word the same way with and without a space before it.

Copying a word is then the same task everywhere. Merges of letters come first. The last, and so weakest, merges join a
space with a few hundred frequent words.
"""

import json
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.corpus import dialogue
from training.template import HIDDEN, SHOWN, render

_PUNCTUATION = r"[^\s\p{L}\p{N}]"
_REST = rf"|\p{{N}}| ?{_PUNCTUATION}+(?: {_PUNCTUATION}+)*|\n+|\s"
_APART = Regex(r"\p{L}+" + _REST)
_JOINED = Regex(r" ?\p{L}+" + _REST)
MIXTURE = {"copying": 0.15, "agent": 0.4, "json": 0.15, "facts": 0.2, "needle": 0.1}


def build(size: int, dialogues: int = 4000) -> Tokenizer:
    """Train a tokenizer of `size` tokens, added ones included, on `dialogues` dialogues. ValueError if they do not
    suffice.
    """
    texts = []
    for i in range(dialogues):
        made = dialogue("tokenizer", i, MIXTURE)
        texts.append(render(made.messages, made.tools))
    for token in HIDDEN + SHOWN:
        texts = [t.replace(token, "\n") for t in texts]
    added = len(HIDDEN) + len(SHOWN)
    spaced = (size - added - 256) // 4
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = _pre_tokenizer(_APART)
    trainer = trainers.BpeTrainer(
        vocab_size=size - added - spaced,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=16,
    )
    base.train_from_iterator(texts, trainer)
    state = json.loads(base.to_str())["model"]
    vocab: dict[str, int] = dict(sorted(state["vocab"].items(), key=lambda kv: kv[1]))
    merges = [tuple(m) for m in state["merges"]]
    followers: Counter[str] = Counter()
    for text in texts:
        for word in text.split(" ")[1:]:
            letters = ""
            for symbol in word:
                if not symbol.isalpha():
                    break
                letters += symbol
            if letters in vocab and letters.isascii():
                followers[letters] += 1
    for word, _ in followers.most_common(spaced):
        vocab["Ġ" + word] = len(vocab)
        merges.append(("Ġ", word))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(_JOINED)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in HIDDEN])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in SHOWN])
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"the tokenizer came out with {tokenizer.get_vocab_size()} tokens, not {size}: more dialogues")
    return tokenizer


def _pre_tokenizer(pattern: Regex) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Write the tokenizer to a file such as tokenizer.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
