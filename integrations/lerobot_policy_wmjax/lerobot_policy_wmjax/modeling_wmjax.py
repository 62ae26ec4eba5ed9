"""A policy of wmjax with the methods that LeRobot calls. Importing it imports jax beside torch, in one process."""

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_wmjax.configuration_wmjax import TRAINS, WmjaxConfig
from wmjax.core.errors import UserError
from wmjax.data.observation import resize_image
from wmjax.policy.policy import load_policy
from wmjax.policy.policy_actor import PolicyActor
from wmjax.rollout.actors import Decision
from wmjax.sim.episode import EpisodeId

INSTRUCTION = "task"
"""Where LeRobot's environments and recordings put the sentence."""


class WmjaxPolicy(PreTrainedPolicy):
    """A batch of environments, each with its own row of the policy's memory.

    LeRobot calls :meth:`select_action` at every control step. The policy keeps a frame every ``frame_stride`` of them,
    and decides when the chunk before has been executed. The noise of a decision follows from the seed, the number of
    the episode since the policy was loaded, the row, and the decision's number.
    """

    config_class = WmjaxConfig
    name = "wmjax"

    def __init__(self, config: WmjaxConfig, folder: str | None = None, **_: Any) -> None:
        super().__init__(config)
        if folder is None:
            raise NotImplementedError(TRAINS)
        config.validate_features()
        self._folder, self._rows, self._episodes = folder, 0, -1
        self.reset()

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **kwargs: Any
    ) -> "WmjaxPolicy":
        """Loads what ``wmjax.export --format lerobot`` wrote.

        Args:
            pretrained_name_or_path: the folder, or a repository of the hub that holds it.
            config: in place of that in the folder.
            kwargs: LeRobot's own, which a policy of wmjax does not need.

        Raises:
            wmjax.UserError: no policy of wmjax there.

        """
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path)
        place = str(pretrained_name_or_path)
        return cls(config, folder=place if Path(place).is_dir() else f"hub:{place}").eval()

    def reset(self) -> None:
        """Begins an episode in every row."""
        self._episodes += 1
        self._steps = self._decisions = 0
        self._frames: list[np.ndarray] = []
        self._queue: deque[Tensor] = deque()

    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """The action of this control step, raw: ``[batch, action]``.

        Args:
            batch: for every camera float images ``[batch, 3, height, width]`` in [0, 1], rotated as the policy's specs
                say; ``observation.state`` ``[batch, state]``; ``task``, a sentence for each row.

        """
        self._prepare(len(batch[OBS_STATE]))
        if self._steps % self._stride == 0:
            self._frames.append(self._images(batch))
        if not self._queue:
            self._queue.extend(self._decide(batch, self._frames, forget=False).unbind(1))
            self._frames = []
        self._steps += 1
        return self._queue.popleft()

    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """Decides now: ``[batch, open_loop_horizon, action]``.

        The newest frame takes the place of all past frames, because those between two chunks are missing here; only
        :meth:`select_action` uses the policy's memory.
        """
        self._prepare(len(batch[OBS_STATE]))
        self._queue.clear()
        return self._decide(batch, [self._images(batch)], forget=True)

    def get_optim_params(self) -> dict[str, Any]:
        """None of them is PyTorch's."""
        return {}

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any] | None]:
        """Refuses to train.

        Raises:
            NotImplementedError: always.

        """
        raise NotImplementedError(TRAINS)

    def _prepare(self, rows: int) -> None:
        """Loads and compiles the policy for so many environments, if it is not."""
        if rows == self._rows:
            return
        if self._steps:
            raise ValueError(f"{self._rows} environments became {rows} within an episode; call reset() between them")
        policy = load_policy(self._folder, batch_size=rows, open_loop_horizon=self.config.open_loop_horizon)
        if policy.pending_steps:
            raise UserError(
                f"the policy takes the {policy.pending_steps} actions that are executed while it decides, but "
                "LeRobot waits for each action; serve it with wmjax.serve, or export one without model.pending"
            )
        self._needed, self._rows = policy.frames_per_decision, rows
        self._stride, self._size = policy.observation_spec.frame_stride, policy.observation_spec.image_size
        self._actor = PolicyActor(policy, self.config.seed)
        self._actor.prepare(rows, self.config.open_loop_horizon, policy.action_spec)

    def _images(self, batch: dict[str, Any]) -> np.ndarray:
        """The frames of all rows, as the policy sees them: uint8 ``[batch, cameras, size, size, 3]``."""
        cameras = []
        for name in self.config.cameras:
            pixels = (batch[name].detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
            raw = pixels.permute(0, 2, 3, 1).numpy()
            cameras.append(np.stack([resize_image(image, self._size) for image in raw]))
        return np.stack(cameras, 1)

    def _decide(self, batch: dict[str, Any], frames: list[np.ndarray], *, forget: bool) -> Tensor:
        """The next chunk of every row, on the frames that fell due: ``[batch, open_loop_horizon, action]``."""
        due = [frames[0]] * (self._needed - len(frames)) + frames  # at the first decision there is only one
        state, sentences = batch[OBS_STATE].detach().cpu().float().numpy(), batch[INSTRUCTION]
        decisions = [
            Decision(
                slot=row,
                episode=EpisodeId("lerobot", row, "random", self._episodes),
                number=self._decisions,
                step=self._steps,
                frames=np.stack([images[row] for images in due]),
                state=state[row],
                instruction=sentences[row],
                forget=forget,
            )
            for row in range(self._rows)
        ]
        plans = self._actor.act(decisions)
        self._decisions += 1
        chunk = np.stack([plan.actions[: self.config.open_loop_horizon] for plan in plans])
        return torch.from_numpy(chunk)
