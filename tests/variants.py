"""The memory settings of the experiment's variants, as ``train/variants`` has them.

Without those whose network and graph are another's: ``e1past`` is ``e2`` on other batches (``data/test_labels.py``),
and what ``e2stop``, ``e2only``, ``e1history`` and ``oracle`` change are settings of their own (``models/test_vla.py``);
``e0state`` is ``e0`` on other states (``data/test_pending.py``).
"""

from wmjax.core.settings import build
from wmjax.experiment.config import axis_names, read_axis
from wmjax.models.world.config import WorldMemoryConfig

ONE_SETTING_APART = ("e1past", "e2stop", "e2only", "e1history", "oracle", "e0state")
VARIANTS: dict[str, WorldMemoryConfig] = {
    name: build(WorldMemoryConfig, read_axis("variants", name)["model"]["memory"])
    for name in axis_names("variants")
    if not name.startswith("prior") and name not in ONE_SETTING_APART
}
