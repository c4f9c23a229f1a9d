"""Counts in measured steps how evenly tokens choose experts."""

import torch
from torch import Tensor

from workers.model.config import LingConfig

# The weight that older steps keep when a new one is added.
_FADE = 0.9


class ExpertLoad:
    """The counts that a model adds to while a step is measured: [sparse layers, experts], fp32, on its device."""

    def __init__(self, config: LingConfig, tp: int, device: torch.device) -> None:
        self._first = config.first_k_dense_replace
        layers = config.num_hidden_layers - self._first
        self.counts: Tensor = torch.zeros(layers, config.num_experts, device=device)
        self._faded = torch.zeros_like(self.counts)
        self._by_rank = [0] * tp

    def settle(self) -> None:
        """Take over the counts of the measured step."""
        layers, experts = self.counts.shape
        tp = len(self._by_rank)
        by_rank = self.counts.view(layers, tp, experts // tp).sum((0, 2)).tolist()
        self._by_rank = [total + int(new) for total, new in zip(self._by_rank, by_rank, strict=True)]
        self._faded.mul_(_FADE).add_(self.counts)
        self.counts.zero_()

    @property
    def by_rank(self) -> tuple[int, ...]:
        """Tokens times chosen experts so far, by the rank that holds the expert."""
        return tuple(self._by_rank)

    @property
    def peaks(self) -> tuple[tuple[int, float], ...]:
        """For each layer (layer, its busiest expert's load over the mean) of recent steps; empty before the first."""
        if not self._faded.numel() or not any(self._by_rank):
            return ()
        ratios = (self._faded.amax(1) / self._faded.mean(1)).tolist()
        return tuple((self._first + index, ratio) for index, ratio in enumerate(ratios))
