"""The model card of a policy: ``README.md`` with the front matter that the Hugging Face hub reads.

It says what the policy is, what it was trained on and how, what it observes and does, and every finished evaluation of
these parameters with its interval and its caveats. Folders of the machine that trained it are named by their last part.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wmjax.core.errors import UserError
from wmjax.core.paths import listed
from wmjax.experiment.changes import changed_settings
from wmjax.experiment.config import RESUMABLE, Experiment, from_dict
from wmjax.policy.hub import REPOSITORY
from wmjax.policy.saved import SavedPolicy
from wmjax.reporting.caveats import caveats
from wmjax.reporting.evaluation_page import Evaluation, load_evaluation
from wmjax.rollout.protocol import CHANGES, Protocol, from_values, load_protocol, protocol_names
from wmjax.rollout.results import read_header

CARD = "README.md"


def write_card(policy: SavedPolicy, out: Path, dtype: str, place: str) -> list[Evaluation]:
    """Writes the card of a policy into the folder that it was exported to.

    Args:
        policy: what was exported.
        out: the folder.
        dtype: of the stored parameters.
        place: where it will be loaded from: ``hub:OWNER/NAME``, or the folder's name.

    Returns:
        The evaluations that it names.

    Raises:
        UserError: an evaluation is damaged.

    """
    experiment, found = from_dict(policy.meta["experiment"]), find_evaluations(policy)
    name = place.rpartition("/")[2]
    sections = (
        f"# {name}",
        *_summary(policy, experiment, place),
        *_results(found, place, dtype),
        *_specs(policy.meta["specs"]),
        *_training(policy, experiment),
    )
    text = f"---\n{_front_matter(experiment, found, name)}---\n\n" + "\n\n".join(sections) + "\n"
    (out / CARD).write_text(text, encoding="utf-8")
    return found


def find_evaluations(policy: SavedPolicy) -> list[Evaluation]:
    """Every finished evaluation of these parameters, in the order of their folders.

    Raises:
        UserError: one of them is damaged.

    """
    root = policy.evaluations
    every = [path.parent for path in listed(root, "**/header.json")]
    folders = [folder for folder in every if "shards" not in folder.relative_to(root).parts]
    own = [
        folder
        for folder in folders
        if (folder / "summary.json").is_file() and read_header(folder).get("checkpoint", {}).get("hash") == policy.hash
    ]
    return [load_evaluation(folder) for folder in own]


def _front_matter(experiment: Experiment, evaluations: list[Evaluation], name: str) -> str:
    """The YAML between the dashes, by the hub's own writer."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="robotics",
            task_name="success rate in closed loop",
            dataset_type=str(found.header["protocol"]["suite"]),
            dataset_name=f"{found.header['protocol']['suite']}, protocol {found.folder.name}",
            metric_type="success_rate",
            metric_name=f"success rate ({_counts(found)}; 95 % interval {_interval(found)})",
            metric_value=round(found.summary.overall.rate, 4),
        )
        for found in evaluations
    ]
    weights = experiment.train.backbone_weights
    world = ["world-model"] if experiment.model.memory.reads_latents else []
    data = ModelCardData(
        library_name="wmjax",
        pipeline_tag="robotics",
        tags=["wmjax", "jax", "vision-language-action", *world, experiment.recipe],
        base_model=weights if REPOSITORY.fullmatch(weights) else None,
        model_name=name,
        eval_results=results or None,
    )
    return data.to_yaml() + "\n"


def _summary(policy: SavedPolicy, experiment: Experiment, place: str) -> Iterator[str]:
    yield (
        f"A policy of wmjax: recipe `{experiment.recipe}` at scale "
        f"`{experiment.scale}`, {policy.step:,} training steps, seed {experiment.train.seed}."
    )
    yield f'```python\nimport wmjax\n\npolicy = wmjax.load_policy("{place}")\n```'
    weights, encoder = experiment.train.backbone_weights, policy.meta["specs"]["encoder"]
    if weights:
        yield (
            f"The frozen part of its backbone, `{_last(weights)}` (hash `{policy.meta.get('backbone_hash')}`), is not "
            "in this folder: wmjax downloads it if it is on the hub, else `places` or `--train.backbone_weights` name "
            "its folder."
        )
    if encoder is not None:
        yield (
            f"It sees latents of the encoder `{encoder['kind']}`, `{_last(encoder['name'])}` (hash "
            f"`{encoder['weights_hash']}`), and refuses another one."
        )


def _results(evaluations: list[Evaluation], place: str, dtype: str) -> Iterator[str]:
    yield "## Results"
    if not evaluations:
        yield "These parameters have no finished evaluation."
        return
    lines = ["| protocol | suite, tasks | success | rate | 95 % interval | faults |", "|---|---|---|---|---|---|"]
    for found in evaluations:
        overall, protocol = found.summary.overall, found.header["protocol"]
        tasks = ", ".join(map(str, protocol["tasks"]))
        lines.append(
            f"| `{found.folder.name}` | {protocol['suite']}: {tasks} | {_counts(found)} | {100 * overall.rate:.1f} % | "
            f"{_interval(found)} | {overall.timeouts + overall.crashes} |"
        )
    yield "\n".join(lines)
    yield "The intervals are Wilson's, over episodes. " + (
        "The parameters were evaluated as they are stored here."
        if dtype == "float32"
        else f"The parameters were evaluated in float32 and are stored here rounded to {dtype}."
    )
    for found in evaluations:
        notes = caveats(found.header, found.summary.overall, found.finished, found.recorded_runs)
        yield "\n".join([f"`{found.folder.name}`:", "", *(f"- {line}" for line in notes), *_commit(found)])
        if (line := _evaluate_command(found.header, place)) is not None:
            yield f"```bash\n{line}\n```"


def _commit(found: Evaluation) -> list[str]:
    finished = found.finished
    return [f"- Evaluated at commit `{finished.get('commit', 'unknown')}`, {finished.get('finished_at', 'undated')}."]


def _evaluate_command(header: Mapping[str, Any], place: str) -> str | None:
    """The command that repeats an evaluation; None if its protocol is a file that wmjax does not have."""
    try:
        protocol = from_values(dict(header["protocol"]), "header")
        if protocol.name not in protocol_names():
            return None
        unchanged = load_protocol(protocol.name)
    except UserError:  # of another version
        return None
    words = [f"python -m wmjax.evaluate --run {place} --protocol {protocol.name}", *_options(protocol, unchanged)]
    return " ".join(words)


def _options(protocol: Protocol, unchanged: Protocol) -> Iterator[str]:
    for option, short in CHANGES.items():
        value = getattr(protocol, short.setting)
        if value != getattr(unchanged, short.setting):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            yield f"--{option} {shlex.quote(text)}"


def _specs(specs: Mapping[str, Any]) -> Iterator[str]:
    observation, action = specs["observation"], specs["action"]
    yield "## What it observes and does"
    size = observation["image_size"]
    state = (f"{name} ({unit})" if unit else name for name, unit in _pairs(observation, "state", "state_units"))
    does = (f"{name} ({unit})" if unit else name for name, unit in _pairs(action, "names", "units"))
    rows = {
        "cameras": f"{', '.join(observation['cameras'])}; {size} x {size} RGB, rotated by {observation['rotation']}°",
        "frames": f"one per {observation['frame_stride']} control steps, {observation['control_hz']:g} steps per s",
        "state": ", ".join(state),
        "action": f"{', '.join(does)}; chunks of {action['chunk']}",
        "definition": action["definition"] or "not given",
        "normalisation": action["normalisation"],
        "simulator": observation["simulator"] or "none",
    }
    yield "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    yield "`policy.json` has every setting and spec, `policy.safetensors` the averaged parameters."


def _pairs(spec: Mapping[str, Any], names: str, units: str) -> Iterator[tuple[str, str]]:
    return zip(spec[names], spec[units], strict=True)


def _training(policy: SavedPolicy, experiment: Experiment) -> Iterator[str]:
    yield "## Training"
    data = experiment.data
    if data.places:
        yield f"Demonstrations: {', '.join(f'`{_last(place)}`' for place in data.places)}."
    else:
        yield (
            f"Demonstrations: {data.episodes_per_task} of a scripted expert, not of people, for each of the tasks "
            f"{', '.join(map(str, data.tasks))} of {data.suite}, recorded in the simulator."
        )
    words = [f"--config {experiment.recipe} --scale {experiment.scale} --dataset {experiment.dataset}"]
    try:
        changed = changed_settings(experiment)
    except UserError:  # of files that were renamed since
        changed = {}
        yield "The settings that differ from the recipe's files are unknown: this version of wmjax has other files."
    own = {name: value for name, value in changed.items() if name not in RESUMABLE}
    words += [f"--{name} {_value(value)}" for name, value in own.items()]
    yield f"```bash\npython -m wmjax.train {' '.join(words)}\n```"
    yield f"Parameters: hash `{policy.hash}`, exported from step {policy.step}."


def _value(value: Any) -> str:
    text = _last(value) if isinstance(value, str) else "none" if value is None else str(value)
    return shlex.quote(text)


def _last(place: str) -> str:
    """A hub id as it is, and the last part of a local folder: the rest is of one machine."""
    return Path(place).name if Path(place).is_absolute() else place


def _counts(found: Evaluation) -> str:
    overall = found.summary.overall
    return f"{overall.successes} of {overall.finished}"


def _interval(found: Evaluation) -> str:
    low, high = found.summary.overall.interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"
