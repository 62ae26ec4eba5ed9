"""LeRobot's processors around the policy: they rename and batch, and leave numbers as they are.

The policy normalises states and actions itself, by the statistics in its ``policy.json``.
"""

from typing import Any

from lerobot.processor import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RenameObservationsProcessorStep,
)
from lerobot.processor.converters import policy_action_to_transition, transition_to_policy_action
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from lerobot_policy_wmjax.configuration_wmjax import WmjaxConfig

Batch = dict[str, Any]


def make_wmjax_pre_post_processors(
    config: WmjaxConfig, dataset_stats: Any = None
) -> tuple[PolicyProcessorPipeline[Batch, Batch], PolicyProcessorPipeline[PolicyAction, PolicyAction]]:
    """The processors before and after the policy; statistics of a dataset are not used.

    ``wmjax.export`` writes the same steps into the policy's folder, from where LeRobot reads them.
    """
    before = PolicyProcessorPipeline[Batch, Batch](
        steps=[
            RenameObservationsProcessorStep(rename_map={}),
            AddBatchDimensionProcessorStep(),
            DeviceProcessorStep(device="cpu"),
        ],
        name=POLICY_PREPROCESSOR_DEFAULT_NAME,
    )
    after = PolicyProcessorPipeline[PolicyAction, PolicyAction](
        steps=[DeviceProcessorStep(device="cpu")],
        name=POLICY_POSTPROCESSOR_DEFAULT_NAME,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return before, after
