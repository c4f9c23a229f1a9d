"""Operations on tensors, one file each. A model calls these and nothing below them."""

from kernels.group_norm_gate import group_rms_norm_gate
from kernels.lightning.attention import lightning_attention
from kernels.lightning.layer import lightning_layer, lightning_layer_verify
from kernels.lightning.verify import lightning_commit, lightning_verify
from kernels.linear.fp32 import linear_fp32
from kernels.linear.linear import linear
from kernels.linear.quantize import add_rms_norm_quantized, swiglu_quantized
from kernels.mla.attention import mla_attention
from kernels.mla.forms import Forms, Widths, forms
from kernels.mla.latent import norm_rope_write_latent
from kernels.mla.layer import latent_attention
from kernels.mla.prefill import mla_prefill
from kernels.moe.experts import moe_experts
from kernels.moe.gate import moe_gate
from kernels.moe.route import route
from kernels.norm import add_rms_norm, rms_norm
from kernels.rope import qk_norm_rope, rope_interleaved
from kernels.swiglu import swiglu
from kernels.varlen import Keep, Pages, Rows, make_pages, make_rows

__all__ = [
    "Forms",
    "Keep",
    "Pages",
    "Rows",
    "Widths",
    "add_rms_norm",
    "add_rms_norm_quantized",
    "forms",
    "group_rms_norm_gate",
    "latent_attention",
    "lightning_attention",
    "lightning_commit",
    "lightning_layer",
    "lightning_layer_verify",
    "lightning_verify",
    "linear",
    "linear_fp32",
    "make_pages",
    "make_rows",
    "mla_attention",
    "mla_prefill",
    "moe_experts",
    "moe_gate",
    "norm_rope_write_latent",
    "qk_norm_rope",
    "rms_norm",
    "rope_interleaved",
    "route",
    "swiglu",
    "swiglu_quantized",
]
