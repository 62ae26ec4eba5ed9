"""V-JEPA 2 as an :class:`wmjax.encoders.base.Encoder`. Imports neither jax nor torch until it is built."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar

from jaxtyping import Float32, UInt8

from wmjax.core.errors import UserError
from wmjax.core.settings import Range
from wmjax.core.specs import EncoderSpec, Precision
from wmjax.encoders.base import Array, Encoder, EncoderConfig, Exporter
from wmjax.encoders.vjepa2.config import preset
from wmjax.encoders.vjepa2.files import MINI_FOLDER, PUBLISHED, encoder_spec, read_config, resolve_folder, weight_files


@dataclasses.dataclass(frozen=True)
class VJEPA2Settings(EncoderConfig):
    """``model`` is ``mini``, ``vitl``, ``vitg``, a checkpoint's folder or a hub id.

    Tokens are pooled to ``pooling_grid`` x ``pooling_grid``; 0 keeps all of them. ``precision`` is that of the
    export and of every policy that is trained on its latents.
    """

    kind: str = "vjepa2"
    model: str = "mini"
    pooling_grid: Annotated[int, Range(0, 1_000)] = 4
    precision: Precision = "float32"


class VJEPA2(Encoder):
    """The last tubelet's tokens of a V-JEPA 2 encoder in Flax, pooled; PyTorch may export them too."""

    Config: ClassVar[type[EncoderConfig]] = VJEPA2Settings
    MODELS: ClassVar[tuple[str, ...]] = tuple(PUBLISHED)

    def __init__(self, config: VJEPA2Settings) -> None:
        """Loads ``mini``, a checkpoint folder or a hub id.

        Raises:
            UserError: unknown encoder, damaged weights, a grid that does not fit.

        """
        import jax.numpy as jnp
        from flax import nnx

        from wmjax.encoders.vjepa2.weights import load_encoder

        self.spec, self._grid = self.describe(config), config.pooling_grid
        dtype = (
            jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
        )  # of the products; parameters are float32
        self._graph, self.params = nnx.split(load_encoder(resolve_folder(config.model), dtype))

    @classmethod
    def describe(cls, config: VJEPA2Settings) -> EncoderSpec:
        """Identity from the weight files, preprocessing and shape from ``config.json``."""
        return encoder_spec(config.model, config.cameras, config.pooling_grid, config.clip_length, config.precision)

    @classmethod
    def files(cls, config: VJEPA2Settings) -> list[Path]:
        """Config and weights of a checkpoint folder."""
        folder = Path(config.model)
        return [folder / "config.json", *weight_files(folder)] if config.model != "mini" and folder.is_dir() else []

    @classmethod
    def shape(cls, config: VJEPA2Settings) -> tuple[int | None, int | None]:
        """What a hub's encoder is, only its files know."""
        folder = MINI_FOLDER if config.model == "mini" else Path(config.model)
        found = read_config(folder) if folder.is_dir() else None
        grid = config.pooling_grid or (found.grid_size if found else 0)
        return grid**2 * len(config.cameras) or None, found.hidden_size if found else None

    @classmethod
    def without_weights(cls, config: VJEPA2Settings) -> Callable[[Any], Any] | None:
        """Of ``mini``, of a folder and of the published encoders."""
        sizes = [size for size, hub_id in PUBLISHED.items() if config.model in (size, hub_id)]
        folder = MINI_FOLDER if config.model == "mini" else Path(config.model)
        if not sizes and not folder.is_dir():
            return None
        shape = preset(sizes[0]) if sizes else read_config(folder)

        def encode(clips: Any) -> Any:
            from flax import nnx

            from wmjax.encoders.vjepa2.model import VJEPA2Encoder, latents

            return latents(VJEPA2Encoder(shape, rngs=nnx.Rngs(0)), clips, config.pooling_grid)

        return encode

    @classmethod
    def for_export(cls, config: VJEPA2Settings) -> Exporter:
        """In Flax, or in PyTorch if the settings say so.

        Raises:
            UserError: the ``torch`` backend without PyTorch.

        """
        if config.backend == "jax":
            return cls(config)
        try:
            from encoders_export.vjepa import TorchEncoder
        except ImportError as error:
            raise UserError(f"encoder.backend is 'torch' but {error}; run ./setup.sh export, or use 'jax'") from error
        return TorchEncoder(config)

    def apply(
        self, params: Any, clips: UInt8[Array, "batch time height width 3"]
    ) -> Float32[Array, "batch tokens dim"]:
        """z(t) of clips that end at t, in the precision of the spec on every device.

        Accelerators choose the rounding of float32 operands themselves otherwise, and a policy's latents would not be
        those that it was trained on.
        """
        import jax
        from flax import nnx

        from wmjax.encoders.vjepa2.model import latents

        with jax.default_matmul_precision("tensorfloat32" if self.spec.precision == "tf32" else "highest"):
            return latents(nnx.merge(self._graph, params), clips, self._grid)
