"""Policies of wmjax as policies of LeRobot, by LeRobot's conventions for policies of other packages.

``python -m wmjax.export --run RUN --out FOLDER --format lerobot`` writes a folder for ``--policy.path=FOLDER``. The
policy acts in LeRobot's process, in JAX; PyTorch tensors are converted on the way in and out.
"""

from lerobot_policy_wmjax.configuration_wmjax import WmjaxConfig
from lerobot_policy_wmjax.modeling_wmjax import WmjaxPolicy
from lerobot_policy_wmjax.processor_wmjax import make_wmjax_pre_post_processors

__all__ = ["WmjaxConfig", "WmjaxPolicy", "make_wmjax_pre_post_processors"]
