"""The memory settings of the experiment's variants, as ``train/variants`` has them."""

from wmjax.core.settings import build
from wmjax.experiment.config import axis_names, read_axis
from wmjax.models.world.config import WorldMemoryConfig

VARIANTS: dict[str, WorldMemoryConfig] = {
    name: build(WorldMemoryConfig, read_axis("variants", name)["model"]["memory"])
    for name in axis_names("variants")
    if not name.startswith("prior")
}
