"""The coefficients by which the routing policy predicts the time to compute and move tokens. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs in seconds from a model of the cluster's hardware. Workers' own measurements replace them.

    token_s: for one token of a prompt in a full chunk. knee_tokens: this many tokens of context double token_s, because
    latent attention reads them all. A decode step takes step_s, sequence_s for each sequence, and context_s for each
    token of their contexts. Moving a snapshot takes pull_s, state_s, and latent_s for each token. answer_tokens: length
    of the mean answer. itl_s: the longest decode step that keeps clients' inter-token target. The defaults are rounded
    figures for four H200 per worker and 100 Gbit/s per card.
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
        """Seconds of a decode step with so many sequences and so many tokens in all their contexts."""
        return self.step_s + self.sequence_s * sequences + self.context_s * tokens

    def work(self, begin: int, end: int) -> float:
        """A prompt's tokens [begin, end), weighted by the context of each."""
        return (end - begin) * (1.0 + (begin + end) / (2.0 * self.knee_tokens))

    def moved_s(self, tokens: int) -> float:
        """Seconds to move a snapshot with so many latents to another worker."""
        return self.state_s + self.latent_s * tokens
