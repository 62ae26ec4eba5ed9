"""The memory settings of the experiment's variants, as ``train/variants`` has them.

Without those whose network and graph are another's: ``e1past`` is ``e2`` on other batches (``data/test_labels.py``),
and what ``e2stop`` changes is a setting of its own (``models/test_vla.py``).
"""

from wmjax.core.settings import build
from wmjax.experiment.config import axis_names, read_axis
from wmjax.models.world.config import WorldMemoryConfig

VARIANTS: dict[str, WorldMemoryConfig] = {
    name: build(WorldMemoryConfig, read_axis("variants", name)["model"]["memory"])
    for name in axis_names("variants")
    if not name.startswith(("prior", "e1past", "e2stop"))
}
