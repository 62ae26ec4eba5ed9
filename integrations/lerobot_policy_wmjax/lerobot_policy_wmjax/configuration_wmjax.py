"""The settings of a policy in LeRobot's ``config.json``; wmjax's own ``policy.json`` defines the policy."""

from dataclasses import dataclass, field

from lerobot.configs.policies import PreTrainedConfig

TRAINS = "policies of wmjax are trained with python -m wmjax.train; LeRobot evaluates them and records with them"


@PreTrainedConfig.register_subclass("wmjax")
@dataclass
class WmjaxConfig(PreTrainedConfig):
    """A policy of wmjax.

    Attributes:
        cameras: the feature of each of the policy's cameras, in the policy's order, such as
            ``observation.images.image``.
        open_loop_horizon: control steps that are executed of each chunk, a multiple of the policy's frame stride.
        seed: of the noise of the policy's actions.

    """

    cameras: list[str] = field(default_factory=list)
    open_loop_horizon: int = 8
    seed: int = 0

    @property
    def observation_delta_indices(self) -> list[int] | None:
        """None: the policy keeps its own history."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """Those of a chunk."""
        return list(range(self.open_loop_horizon))

    @property
    def reward_delta_indices(self) -> list[int] | None:
        """None: there are no rewards."""
        return None

    def get_optimizer_preset(self) -> None:
        """Refuses to train.

        Raises:
            NotImplementedError: always.

        """
        raise NotImplementedError(TRAINS)

    def get_scheduler_preset(self) -> None:
        """Refuses to train.

        Raises:
            NotImplementedError: always.

        """
        raise NotImplementedError(TRAINS)

    def validate_features(self) -> None:
        """Checks that the cameras are features.

        Raises:
            ValueError: one is not.

        """
        missing = [name for name in self.cameras if name not in self.image_features]
        if missing:
            raise ValueError(f"cameras names {missing[0]!r}, which input_features lacks; export the policy again")
