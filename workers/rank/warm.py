"""Runs forward passes of every size before the first request, so that no request waits for a compiler."""

import torch
from torch import Tensor

from workers.model.batch import Batch, Caches
from workers.model.ling import LingModel

# Kernels take another configuration from each of these numbers of tokens on (their defaults: `kernels.linear`, by rows
# of a tile; `kernels.moe`, by the mean of tokens an expert has), or of tokens in a row (`kernels.mla`).
_FROM = (2, 3, 5, 9, 17, 33, 65, 129, 513, 1025, 3073)


def sizes(most: int) -> tuple[int, ...]:
    """Token counts of prompts that together launch every kernel of steps of up to `most` tokens."""
    return tuple(sorted({*(n for n in _FROM if n < most), most}))


def warm(model: LingModel, caches: Caches, page_table: Tensor, most: int) -> None:
    """Compute one prompt of each size in the last slot, and its logits. All ranks call this at the same time.

    page_table: [slots, max_pages] int32. The content of pages and of the slot is undefined afterwards, so nobody may
    own them yet.
    """
    slot = page_table.shape[0] - 1
    longest = page_table.shape[1] * caches.page_size
    with torch.inference_mode():
        for count in sizes(min(most, longest)):
            positions = torch.arange(count, device=page_table.device)
            batch = Batch(
                token_ids=torch.zeros_like(positions),
                positions=positions,
                slots=torch.full((1,), slot, device=page_table.device),
                starts=(0,),
                counts=(count,),
                page_table=page_table,
            )
            model.logits(model.forward(batch, caches)[-1:])
