"""Operations on tensors, one file each. A model calls these and nothing below them."""

from kernels.group_norm_gate import group_rms_norm_gate
from kernels.latent import norm_rope_write_latent
from kernels.lightning import lightning_attention
from kernels.lightning_layer import lightning_layer
from kernels.lightning_verify import lightning_commit, lightning_verify
from kernels.linear import linear
from kernels.linear_fp32 import linear_fp32
from kernels.mla import mla_attention
from kernels.moe import moe_experts
from kernels.norm import add_rms_norm, rms_norm
from kernels.quantize import add_rms_norm_quantized, swiglu_quantized
from kernels.ragged import Keep, Pages, Rows, make_pages, make_rows
from kernels.rope import qk_norm_rope, rope_interleaved
from kernels.route import route
from kernels.router import router
from kernels.swiglu import swiglu

__all__ = [
    "Keep",
    "Pages",
    "Rows",
    "add_rms_norm",
    "add_rms_norm_quantized",
    "group_rms_norm_gate",
    "lightning_attention",
    "lightning_commit",
    "lightning_layer",
    "lightning_verify",
    "linear",
    "linear_fp32",
    "make_pages",
    "make_rows",
    "mla_attention",
    "moe_experts",
    "norm_rope_write_latent",
    "qk_norm_rope",
    "rms_norm",
    "rope_interleaved",
    "route",
    "router",
    "swiglu",
    "swiglu_quantized",
]
