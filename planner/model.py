"""The model to plan for: its config, its weights' format and its number of MTP layers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from planner.errors import PlanError
from workers.model.config import LingConfig, ModelConfigError
from workers.model.quantization import Method, Quantization

Format = Literal["bf16", "fp8-channel", "fp8", "int4", "awq"]
# Each format's usual scheme: 128x128 blocks, groups of 32 in INT4 and 128 in AWQ. Ordered by bytes, the most first.
_SCHEMES: dict[Format, Quantization] = {
    "bf16": Quantization("none"),
    "fp8-channel": Quantization("channel fp8"),
    "fp8": Quantization("fp8"),
    "int4": Quantization("int4"),
    "awq": Quantization("awq", group=128),
}
FORMATS: tuple[Format, ...] = tuple(_SCHEMES)
_NAMES: dict[Method, Format] = {scheme.method: name for name, scheme in _SCHEMES.items()}
RELEASED = "ling-2.6-flash"
_MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True, slots=True)
class Model:
    """A model. name: as the plan shows it. weights: their format. mtp_layers: their number by the config."""

    name: str
    config: LingConfig
    weights: Format
    mtp_layers: int

    @property
    def scheme(self) -> Quantization:
        """How the matrices are quantized: by the config if it has the format `weights`, else by the usual scheme."""
        own = self.config.quantization
        return own if _NAMES[own.method] == self.weights else _SCHEMES[self.weights]

    @property
    def latent_layers(self) -> tuple[int, ...]:
        """Indices of the MLA layers."""
        return tuple(i for i in range(self.config.num_hidden_layers) if self.config.is_mla(i))

    @property
    def linear_layers(self) -> tuple[int, ...]:
        """Indices of the linear-attention layers."""
        return tuple(i for i in range(self.config.num_hidden_layers) if not self.config.is_mla(i))

    @property
    def has_mtp(self) -> bool:
        """Whether the release has MTP layers. INT4 releases leave them out, even if the config declares them."""
        return self.mtp_layers > 0 and self.weights != "int4"

    def state_bytes(self, tp: int = 1) -> int:
        """Bytes of one sequence's linear state on one of `tp` ranks, in fp32; it does not grow with the sequence."""
        heads, key, value = self.config.state_shape(tp)
        return self.config.linear_layers * heads * key * value * 4

    def latent_bytes(self, mtp: bool = False) -> int:
        """Bytes of one token's latents in bf16, the same on every rank. mtp: whether the MTP layers are loaded."""
        layers = self.config.mla_layers + (self.mtp_layers if mtp else 0)
        return layers * self.config.latent_width * 2

    def allowed_tp(self) -> list[int]:
        """All numbers of ranks over which the model can be split evenly."""
        return [tp for tp in range(1, self.config.group_norm_size + 1) if self._shards(tp)]

    def _shards(self, tp: int) -> bool:
        try:
            self.config.check_tp(tp)
        except ModelConfigError:
            return False
        return True


def load_model(model: str, weights: Format | None = None) -> Model:
    """Load the model of a checkpoint folder, or the released model by its name. It reads only config.json.

    weights: their format; None for the config's. PlanError says what is wrong with the config.
    """
    folder = _MODELS / model if model == RELEASED else Path(model).expanduser().resolve()
    try:
        config = LingConfig.load(folder, {})
    except ModelConfigError as error:
        raise PlanError(f"--model: {error}; give a checkpoint folder or {RELEASED}") from None
    return Model(folder.name, config, weights or _NAMES[config.quantization.method], config.mtp_layers)
