"""What computing and moving tokens costs: the few coefficients by which the routing policy predicts. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds, as a model of the cluster's hardware gives them; what workers measure of themselves replaces them.

    token_s: a prompt's token, alone in a full chunk. knee_tokens: so many tokens before it double that, as latent
    attention reads them all. step_s, sequence_s, context_s: a decode step is their sum, the second times its sequences
    and the third times the tokens before those. pull_s, state_s, latent_s: moving a snapshot takes a request to the
    other worker, its linear state, and the third times its tokens. answer_tokens: of the mean answer. itl_s: how long
    a decode step may take, so that clients' inter-token target is kept.

    The defaults are of four H200 a worker and 100 Gbit/s a card, to a digit.
    """

    token_s: float = 2e-5
    knee_tokens: float = 100_000.0
    step_s: float = 5e-3
    sequence_s: float = 5e-5
    context_s: float = 1e-9
    pull_s: float = 1e-3
    state_s: float = 1.5e-3
    latent_s: float = 1e-7
    answer_tokens: int = 256
    itl_s: float = 0.05

    def decode_s(self, sequences: int, tokens: int) -> float:
        """A decode step of so many sequences with so many tokens before them, together."""
        return self.step_s + self.sequence_s * sequences + self.context_s * tokens

    def work(self, begin: int, end: int) -> float:
        """A prompt's tokens [begin, end), weighted by what stands before each."""
        return (end - begin) * (1.0 + (begin + end) / (2.0 * self.knee_tokens))

    def moved_s(self, tokens: int) -> float:
        """A snapshot's state and so many latents, to another worker."""
        return self.state_s + self.latent_s * tokens
