"""The MTP layer (multi-token prediction, DeepSeek-V3), which predicts the token after the next one, and so drafts."""

import torch
from torch import Tensor

from kernels import add_rms_norm, rms_norm
from workers.model.batch import Caches
from workers.model.formats import Part
from workers.model.layer import DecoderLayer
from workers.model.linear import Linear, Shard, load_vector
from workers.model.loader import Loader
from workers.model.step import StepInputs


class MtpLayer:
    """One MLA layer over joined hidden states and embeddings. It uses the model's own embedding and head."""

    def __init__(self, shard: Shard) -> None:
        config = shard.config
        index, hidden = config.num_hidden_layers, config.hidden_size
        self._shard = shard
        self._prefix = f"model.layers.{index}"
        self._eps = config.rms_norm_eps
        # The whole matrix is on every rank: a split input would cost a further sum over the ranks for each draft.
        self._join = Linear(shard, [Part(f"{self._prefix}.eh_proj", (hidden, 2 * hidden))])
        self._layer = DecoderLayer(shard, index)
        self._embedding_norm: Tensor
        self._hidden_norm: Tensor
        self._final_norm: Tensor

    def load(self, loader: Loader) -> None:
        """Ask for this rank's share."""
        self._join.load(loader)
        self._layer.load(loader)
        self._embedding_norm, self._hidden_norm, self._final_norm = (
            load_vector(self._shard, loader, f"{self._prefix}.{name}.weight", self._shard.config.hidden_size)
            for name in ("enorm", "hnorm", "final_layernorm")
        )

    def __call__(self, embedded: Tensor, hidden: Tensor, caches: Caches, step: StepInputs) -> Tensor:
        """Compute hidden states [T, hidden], which the head turns into logits of position p + 2.

        embedded: [T, hidden], the token at p + 1. hidden: [T, hidden], the model's hidden state at p after its final
        norm, or this layer's own result for drafts beyond the first.
        """
        joined = torch.cat(
            (rms_norm(embedded, self._embedding_norm, self._eps), rms_norm(hidden, self._hidden_norm, self._eps)), -1
        )
        x = self._join(joined)
        x, residual = self._layer(x, torch.zeros_like(x), caches, step)
        return add_rms_norm(x, residual, self._final_norm, self._eps)[0]
