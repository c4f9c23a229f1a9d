"""The input of a step's forward pass: a variable-length batch of tokens, and the caches that they continue."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import Keep


@dataclass(frozen=True, slots=True)
class Batch:
    """B sequences' tokens laid end to end, T in all; nothing is padded.

    token_ids, positions: [T] int64. slots: [B] int64, each sequence's state slot. starts: tokens of each sequence
    computed before this step, None where the device alone knows them; counts: its tokens in this step (>= 1), so
    sum(counts) = T. If a start is 0, the slot's old content counts as zero. page_table: [num_slots, max_pages] int32,
    row s lists the pages of the sequence in slot s; position p lies in page p // page_size at p % page_size. keeps:
    linear states to copy into other slots within the pass. verified: how many of the first rows end in drafts; their
    linear states do not change until `LingModel.commit` says how many tokens were accepted.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    starts: tuple[int, ...] | None
    counts: tuple[int, ...]
    page_table: Tensor
    keeps: tuple[Keep, ...] = ()
    verified: int = 0


@dataclass(frozen=True, slots=True)
class Caches:
    """One rank's share of every sequence's state.

    latent: [latent_layers, pages, page_size, kv_lora_rank + qk_rope_head_dim] in the compute dtype, the same on all
    ranks: normed latent, then roped key. state: [linear_layers, slots, heads/tp, head_dim, head_dim] fp32, indexed [key
    dim, value dim]. verified: keys in fp32 and values in the compute dtype of the latest verified rows, each
    [linear_layers, tokens, heads/tp, head_dim], from which their states are advanced once the number of accepted tokens
    is known; None without drafts.
    """

    latent: Tensor
    state: Tensor
    verified: tuple[Tensor, Tensor] | None = None

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        return self.latent.shape[2]

    @staticmethod
    def bytes_per_page(latent_layers: int, page_size: int, width: int, dtype: torch.dtype) -> int:
        """Bytes of one page, over all layers with latents."""
        return latent_layers * page_size * width * dtype.itemsize
