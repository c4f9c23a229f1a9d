"""How a sequence's tokens are sampled, as every request says it."""

from wire.protocol.data import Data


class Grammar(Data, frozen=True):
    """The grammar of a sequence's text for the grammar engine (llguidance): Lark, or its JSON of several grammars.

    Each worker compiles equal texts once.
    """

    text: str


class SamplingParams(Data, frozen=True):
    """How a sequence's next tokens are sampled and when it ends.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 are off. `seed` alone decides the noise, with the
    token's position, so a request gives the same tokens in whatever batch it runs. `stop_token_ids` already holds the
    end-of-sequence ids unless the user asked to ignore them. `logprobs` / `prompt_logprobs`: None for none, k for the
    chosen token and the k most likely. `grammar`: stop tokens may follow only where it allows the text to end.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
