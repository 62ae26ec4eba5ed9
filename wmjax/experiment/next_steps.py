"""The commands to run after a training, which work exactly as they are printed."""

import json
import shlex
from pathlib import Path

from wmjax.experiment.changes import changed_settings
from wmjax.experiment.config import Experiment, split_recipe
from wmjax.rollout.protocol import Protocol, load_protocol, protocol_names


def next_steps(experiment: Experiment, run: Path, done: Protocol) -> list[str]:
    """Commands that continue from a finished run, with their purpose; ``done`` is the protocol of its evaluation."""
    steps = []
    acts = not experiment.model.memory.needs_future  # a bound is not measured on the benchmark
    if acts and done.suite in protocol_names() and done.name != done.suite:
        tasks = "" if done.tasks == load_protocol(done.suite).tasks else f" --tasks {','.join(map(str, done.tasks))}"
        evaluation = ["python", "-m", "wmjax.evaluate", "--run", str(run), "--protocol", done.suite]
        delay = f" --delay {experiment.pending_steps}" if experiment.pending_steps else ""
        steps.append(f"{shlex.join(evaluation)}{tasks}{delay}   # the benchmark, once per recipe")
    other, purpose = _other_variant(experiment.recipe)
    command = ["python", "-m", "wmjax.train", "--config", other, "--scale", experiment.scale]
    command += ["--dataset", experiment.dataset, *_changed_settings(experiment)]
    steps.append(f"{shlex.join(command)}   # {purpose}")
    steps.append(f"{shlex.join(['tensorboard', '--logdir', f'{run}/tensorboard'])}   # R2 per action, skill, gate")
    return steps


def _other_variant(recipe: str) -> tuple[str, str]:
    """The recipe to compare with, which has the same head, and what the comparison says."""
    variant, head = split_recipe(recipe)
    family = "prior_" if variant.startswith("prior_") else ""
    if variant == f"{family}e0":
        return f"{family}e2_{head}", "the same with a predicted future"
    if variant == "e2":
        return f"e1_{head}", "the same network without the world loss: what prediction adds"
    return f"{family}e0_{head}", "the same without world memory"


def _changed_settings(experiment: Experiment) -> list[str]:
    """The settings that differ from the files of recipe, scale and data, as arguments, without the memory's."""
    changed = {k: v for k, v in changed_settings(experiment).items() if "model.memory." not in k}
    return [word for k, v in changed.items() for word in (f"--{k}", v if isinstance(v, str) else json.dumps(v))]
