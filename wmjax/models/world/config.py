"""The settings of the world memory: its input, its loss, and whether the action tokens attend to it.

``train/variants`` has the combinations that the experiment compares; docs/experiments.md says what each isolates.
"""

import dataclasses
from typing import Literal, get_args

from wmjax.core.errors import UserError, unknown_name
from wmjax.core.settings import SHUFFLED, Corruption, Rate, Settings, Weight
from wmjax.models.world.prophet import ProphetConfig

Input = Literal["none", "latents", "constant", "copy", "history", "hidden", "future"]
Target = Literal["future", "past", "branch"]


@dataclasses.dataclass(frozen=True)
class WorldMemoryConfig(Settings, section="memory"):
    """The settings that distinguish the variants of the experiment.

    Attributes:
        input: the source of the memory: ``latents`` (Prophet on the latent history), ``constant`` (the same
            Prophet on ones), ``copy`` (z(t) repeated, no Prophet), ``history`` (the latest frames as they are, no
            Prophet), ``hidden`` (a Prophet on the VLM's hidden states), ``future`` (the true future, in training and
            in acting, where only a simulator knows it: a bound, which no variant may be compared with) or ``none``.
        world_loss: weight of the prediction loss.
        inject: whether the action tokens attend to the memory.
        action_gradient: whether the action loss trains the Prophet.
        dropout: share of training samples with an empty memory.
        target: the frames whose latents the prediction loss compares, and which the memory ``future`` is in training:
            ``future``, those after the present one as they were executed; ``branch``, those in which the pending
            actions of ``train.delay`` are executed and then the expert acts undisturbed, where the recording has them
            (``data.demonstrations.branch_frames``); or ``past``, as many before the latent history, newest first.
            Acting and diagnosis do not depend on it.

    """

    input: Input = "latents"
    world_loss: Weight = 0.5
    inject: bool = True
    action_gradient: bool = True
    dropout: Rate = 0.1
    target: Target = "future"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input not in get_args(Input):
            raise unknown_name("memory.input", self.input, get_args(Input))
        if self.world_loss and self.input not in ("latents", "hidden"):
            raise UserError(
                f"memory.world_loss is {self.world_loss} with memory.input {self.input!r}; only inputs latents and "
                f"hidden can be trained to predict, set it to 0"
            )
        if self.target not in get_args(Target):
            raise unknown_name("memory.target", self.target, get_args(Target))
        if self.target == "past" and not (self.world_loss and self.input == "latents"):
            raise UserError(
                f"memory.target is 'past' with memory.input {self.input!r} and memory.world_loss {self.world_loss}; "
                f"only a Prophet that reads latents and is trained by the world loss has a target, set it to 'future'"
            )
        if self.target == "branch" and not (self.world_loss or self.needs_future):
            raise UserError(
                f"memory.target is 'branch' with memory.input {self.input!r} and memory.world_loss 0; only the world "
                "loss and the memory 'future' have a target, set it to 'future'"
            )
        if self.inject and self.input in ("none", "hidden"):
            raise UserError(f"memory.inject is true with memory.input {self.input!r}; set memory.inject to false")

    @property
    def has_prophet(self) -> bool:
        """Whether there is a network that predicts."""
        return self.input in ("latents", "constant", "hidden")

    @property
    def reads_latents(self) -> bool:
        """Whether V-JEPA latents are read, to make the memory or (``hidden``) to score a prediction of them."""
        return self.input in ("latents", "copy", "history", "hidden", "future")

    @property
    def needs_future(self) -> bool:
        """Whether the memory is the true future, so that it acts under an oracle only."""
        return self.input == "future"


def require_condition(memory: WorldMemoryConfig, prophet: ProphetConfig) -> None:
    """Refuses a condition without a Prophet to use it, or one that would leak the true actions to the action tokens.

    Raises:
        UserError: names the settings that do not fit.

    """
    if prophet.condition and memory.input not in ("latents", "constant"):
        raise UserError(
            f"prophet.condition is {list(prophet.condition)} with memory.input {memory.input!r}; only a Prophet that "
            "reads latents (or the constant) has other inputs, leave prophet.condition empty"
        )
    if "actions" not in prophet.condition:
        return
    if memory.inject:
        raise UserError(
            "prophet.condition names 'actions' with memory.inject true: the memory would leak the true actions to the "
            "action tokens; set memory.inject to false (a forward model beside the policy)"
        )
    if memory.input != "latents":
        raise UserError(
            f"prophet.condition names 'actions' with memory.input {memory.input!r}; a forward model needs 'latents'"
        )


def intervention_error(memory: WorldMemoryConfig, oracle: float | None, corruption: Corruption) -> str | None:
    """The reason why a variant cannot be evaluated with an oracle or a corruption, and the fix; None if it can.

    An oracle needs a prediction of the future that the actions depend on; a corruption needs any injected memory.
    """
    if memory.needs_future and oracle != 0:
        return (
            f"oracle is {oracle}, but the policy's memory is the true future (memory.input 'future'); evaluate it with "
            "oracle 0"
        )
    if oracle is not None and not (memory.inject and memory.input in ("latents", "copy", "history", "future")):
        return (
            f"oracle is {oracle}, but the policy acts without a memory of the future (memory.input {memory.input!r}, "
            f"memory.inject {str(memory.inject).lower()}); evaluate an e1, e1copy or e2 run, or leave oracle out"
        )
    if corruption != "none" and not memory.inject:
        return (
            f"corruption is {corruption!r}, but the policy acts without a world memory (memory.inject is false); "
            "evaluate a variant that injects one, or leave corruption out"
        )
    if corruption in SHUFFLED and memory.input == "constant":
        return (
            f"corruption is {corruption!r}, but with memory.input 'constant' every episode has the same memory; "
            "use zero, noise or closed"
        )
    return None
