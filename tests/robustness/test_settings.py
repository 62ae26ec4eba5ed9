"""Settings: every number that cannot work is refused in one line, whichever way it is given."""

import dataclasses
import functools
import math
import random
import re
import shutil
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.robustness_step import TRAINS, Stepper
from tests.data.synthetic import make_episode
from wmjax.core.errors import UserError
from wmjax.core.paths import resource_folder
from wmjax.core.settings import Range, Settings, build, convert, parse_overrides, quoted, type_hints
from wmjax.data.store import finalize, write_part
from wmjax.experiment.checks import require_consistent
from wmjax.experiment.config import Experiment, from_dict, load, to_dict
from wmjax.rollout.protocol import Protocol, load_protocol
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC

BAD = ("-1", "nan", "inf", "-inf", "1e300", "99999999999999999999", "true", "[]", "''", "{}", "x")
"""What nothing but a text or a list can be."""


def leaves(kind: type, path: str = "") -> dict[str, Any]:
    """Every setting of a dataclass of dataclasses, by its dotted name, with its annotation."""
    found: dict[str, Any] = {}
    for name, hint in type_hints(kind).items():
        nested = dataclasses.is_dataclass(hint)
        found |= leaves(hint, f"{path}{name}.") if nested else {f"{path}{name}": hint}
    return found


ALL = {name: hint for name, hint in leaves(Experiment).items() if name not in ("recipe", "scale", "dataset")}


def is_number(hint: Any) -> bool:
    """Whether a setting is one number, or none."""
    if get_origin(hint) is Annotated:
        return is_number(get_args(hint)[0])
    options = [option for option in get_args(hint) if option is not type(None)]
    return hint in (int, float) or (len(options) == 1 and get_origin(hint) is not tuple and is_number(options[0]))


def has_range(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return any(isinstance(extra, Range) for extra in hint.__metadata__)
    return any(has_range(option) for option in get_args(hint))


NUMBERS = {name: hint for name, hint in ALL.items() if is_number(hint)}
FREE = {
    "data.observation.rotation",
    "data.observation.format_version",
}
"""Numbers of which only one or two values exist, which are checked against those."""


@functools.cache
def defaults() -> dict[str, Any]:
    return to_dict(load("e2_flow", "smoke"))


def attempt(name: str, text: str) -> str | None:
    """Sets one setting as the command line does; the refusal, or None."""
    try:
        built = load("e2_flow", "smoke", overrides=parse_overrides([f"--{name}", text]))
    except UserError as error:
        return str(error)
    assert from_dict(to_dict(built)) == built
    return None


def test_every_number_has_a_range():
    assert {name for name, hint in NUMBERS.items() if not has_range(hint)} <= FREE
    protocol = {name for name, hint in leaves(Protocol).items() if is_number(hint) and not has_range(hint)}
    assert not protocol


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_no_number_accepts_bad_text(name):
    for text in BAD:
        if name in ("mesh.data",) and text == "-1":
            continue  # all devices that are left
        message = attempt(name, text)
        if name in FREE and text == "-1":
            continue
        assert message is not None, f"{name} takes {text}"
        assert "\n" not in message and len(message) < 400
        assert name.rsplit(".", 1)[-1] in message, message


FILES = {
    "scales/smoke.toml": ("[optimizer]\nlearning_rate = -1\n", r"optimizer.learning_rate is -1"),
    "data/smoke.toml": ("[data]\nworkers = 0\n", r"data.workers is 0"),
    "variants/e2.toml": ("[model.memory]\ndropout = 1.5\n", r"memory.dropout is 1.5"),
    "heads/flow.toml": ('[model.head]\nkind = "flow"\ndraws = "x"\n', r"head.draws is 'x'"),
}
"""Files of each axis with a value that cannot work."""


@pytest.mark.parametrize("file", FILES)
def test_a_value_that_a_file_says_is_corrected_there(file, tmp_path, monkeypatch):
    folder = shutil.copytree(resource_folder("train"), tmp_path / "train")
    content, message = FILES[file]
    (folder / file).write_text(content, encoding="utf-8")
    monkeypatch.setattr("wmjax.experiment.config.resource_folder", lambda _: folder)
    place = f"train/{file}" if file.startswith(("scales", "data")) else r"the file of e2_flow in train/variants"
    with pytest.raises(UserError, match=rf"{message}.*; correct {place}"):
        load("e2_flow", "smoke")
    # The command line is stronger, and no file is to blame for what it says.
    with pytest.raises(UserError, match=r"train.batch_size is -1; it must be at least 1 and at most 1e\+06$"):
        load("e0_l1", "mini", "spatial", parse_overrides(["--train.batch_size", "-1"]))


@given(name=st.sampled_from(sorted(ALL)), value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_value_of_any_setting_is_refused_in_one_line_or_builds(name, value):
    values: dict[str, Any] = {**defaults()}
    place = values
    *groups, last = name.split(".")
    for group in groups:
        place[group] = dict(place[group])
        place = place[group]
    place[last] = value
    try:
        built = from_dict(values)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        return
    for key, hint in leaves(Experiment).items():
        item = functools.reduce(getattr, key.split("."), built)
        assert not is_number(hint) or item is None or math.isfinite(item)


def _beside(end: float, towards: float) -> float:
    """The next number that float32 holds, and XLA does not take for 0."""
    found = float(np.nextafter(np.float32(end), np.float32(towards)))
    return found if end else float(np.finfo(np.float32).tiny)


def ranges(built: Any, path: str = "") -> dict[str, tuple[float, float]]:
    """The least and the largest value of every setting of a training step that is one fraction, weight or size."""
    found: dict[str, tuple[float, float]] = {}
    for field in dataclasses.fields(built):
        value, hint = getattr(built, field.name), type_hints(type(built))[field.name]
        if dataclasses.is_dataclass(value):
            found |= ranges(value, f"{path}{field.name}.")
        elif get_origin(hint) is Annotated and get_args(hint)[0] is float:
            range_ = next(extra for extra in hint.__metadata__ if isinstance(extra, Range))
            low = _beside(range_.min, math.inf) if range_.above else range_.min
            found[f"{path}{field.name}"] = low, _beside(range_.max, 0) if range_.below else range_.max
    return {name: ends for name, ends in found.items() if name.startswith(TRAINS)}


@pytest.mark.slow
def test_values_in_their_ranges_train_a_finite_step_or_are_refused(tmp_path):
    """The ends of the ranges among them; what does not fit together is refused in one line."""
    known, stepper, trained = ranges(load("e2_flow", "smoke")), Stepper(tmp_path), 0
    assert len(known) > 20
    for seed in range(30):
        if trained == 2:
            break
        draw = random.Random(seed)
        words = []
        for name in draw.sample(sorted(known), 5):
            low, high = known[name]
            words += [f"--{name}", repr(draw.choice([low, high, draw.uniform(low, high), low + draw.random() * 1e-3]))]
        try:
            trained += stepper.try_step("train.", parse_overrides(words))
        except UserError as error:
            assert "\n" not in str(error)
    assert trained == 2


LATE = [
    (["--data.demonstrations.label_steps", "4"], "model.chunk is 8, but the chunk labels of .* have 4 control steps"),
    (["--model.chunk", "16", "--prompt.length", "88"], "model.chunk is 16, but the chunk labels of .* have 8"),
    (["--train.delay", "3"], "train.delay is 3, but .* begin every 4 control steps only"),
    (["--encoder.max_shift", "112"], "encoder.max_shift is 112, but the images have 112 pixels"),
    (["--encoder.max_shift", "60", "--data.observation.image_size", "56"], "but the images have 56 pixels"),
]
"""What the loader refuses, and an encoder makes nothing of, with what it is refused by."""


@pytest.mark.parametrize(("words", "message"), LATE)
@pytest.mark.parametrize("recipe", ["e2_flow", "e0_mse"])
def test_what_training_would_refuse_is_refused_before_anything_is_recorded(recipe, words, message):
    require_consistent(load(recipe, "smoke"))
    with pytest.raises(UserError, match=message):
        require_consistent(load(recipe, "smoke", overrides=parse_overrides(words)))


def test_labels_and_images_of_given_demonstrations_are_looked_at_too(tmp_path):
    folder = tmp_path / "store"
    spec = dataclasses.replace(OBSERVATION_SPEC, image_size=56)
    for index in range(4):
        episode = make_episode(index, 9, 56)
        chunk = np.zeros((len(episode.images), 4, 7), np.float32)
        write_part(folder, f"{index}", dataclasses.replace(episode, action_chunk=chunk), spec)
    store = finalize(folder, spec, ACTION_SPEC)
    given_ = ["--data.path", str(store.folder), "--encoder.max_shift", "8"]
    for more, message in (([], r"the chunk labels in .*store have 4"), (["--encoder.max_shift", "56"], "56 pixels")):
        own = ["--model.chunk", "4"] if more else []
        with pytest.raises(UserError, match=message):
            require_consistent(load("e2_flow", "smoke", overrides=parse_overrides([*given_, *own, *more])), store)


@pytest.mark.parametrize("name", ["train..steps", ".train.steps", "train.steps.", ".", "..", "train..", ""])
def test_a_name_with_an_empty_part_is_refused(name):
    with pytest.raises(UserError, match=rf"--{re.escape(name)} has an empty part; settings are written"):
        parse_overrides([f"--{name}", "5"])


@given(st.lists(st.text(max_size=12), max_size=5))
@settings(max_examples=200, deadline=None)
def test_any_command_line_is_refused_in_one_line_or_read(words):
    try:
        assert isinstance(parse_overrides(words), dict)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"model": 3}, "groups of settings"),
        ({"model": {"backbone": "7b"}}, "groups of settings"),
        ({"model": {"backbone": {"preset": 7}}}, "'7'"),
        ({"train": [1]}, "train is"),
        ({"optimizer": {"learning_rate": 10**400}}, "optimizer.learning_rate"),
        ({"data": {"tasks": [0, -1]}}, r"data.tasks[1] is -1"),
        ({"model": {"head": {"time_beta": [float("nan"), 1.0]}}}, "time_beta"),
        ({"model": {"injection": {"layers": [-1]}}}, "layers[0] is -1"),
        ({"data": {"demonstrations": {"noise_low": 0.5, "noise_high": 0.2}}}, "noise_low is 0.5, above noise_high"),
    ],
)
def test_groups_lists_and_pairs(settings_, words):
    with pytest.raises(UserError) as caught:
        load("e2_flow", "smoke", overrides=settings_)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"episodes_per_task": 0},
        {"max_steps": -1},
        {"open_loop_horizon": 0},
        {"seed": 2**40},
        {"seed": -1},
        {"ensemble": float("nan")},
        {"target_velocity": float("inf")},
        {"oracle": float("nan")},
        {"first_index": -3},
    ],
)
def test_protocols_have_ranges_too(changes):
    with pytest.raises(UserError, match=rf"protocol\.{next(iter(changes))} is .*; it must be"):
        load_protocol("spatial_dev", **changes)


@dataclasses.dataclass(frozen=True)
class Example(Settings, section="example"):
    """A dataclass with one field of every form."""

    share: Annotated[float, Range(0, 1, below=True)] = 0.5
    sizes: tuple[Annotated[int, Range(1, 9)], ...] = (1,)
    pair: tuple[int, str] = (1, "a")
    limit: Annotated[int, Range(3)] | None = None
    table: dict[str, int] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"share": 1.0}, "example.share is 1.0; it must be at least 0 and below 1"),
        ({"share": 0.9999999999999999}, "example.share is 0.9999999999999999; it must be at least 0 and below 1"),
        ({"share": float("nan")}, "example.share is nan"),
        ({"share": "0.5"}, "example.share is '0.5'"),
        ({"sizes": (1, 10)}, "example.sizes[1] is 10; it must be at least 1 and at most 9"),
        ({"limit": 2}, "example.limit is 2; it must be at least 3"),
        ({"share": np.float64("nan")}, "example.share is"),
    ],
)
def test_ranges_hold_however_a_dataclass_is_built(values, words):
    with pytest.raises(UserError) as caught:
        Example(**values)
    assert words in str(caught.value)
    with pytest.raises(UserError):
        dataclasses.replace(Example(), **values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pair": [1]}, "pair is [1]; expected tuple[int, str]"),
        ({"pair": [1, 2]}, "pair[1] is 2"),
        ({"table": {"a": "x"}}, "table['a'] is 'x'; expected int"),
        ({"table": []}, "table is []"),
        ({"shares": 1}, "did you mean share"),
    ],
)
def test_containers_are_typed_to_their_items(values, words):
    with pytest.raises(UserError) as caught:
        build(Example, values)
    assert words in str(caught.value)


def test_surplus_external_keys_are_ignored_and_missing_ones_named():
    @dataclasses.dataclass(frozen=True)
    class Needed:
        a: int

    assert convert({"a": 1, "b": 2}, Needed, "", surplus=True) == Needed(1)
    with pytest.raises(UserError, match="the key 'a' is missing"):
        convert({"b": 2}, Needed, "", surplus=True)


def test_a_long_value_does_not_fill_the_line():
    assert len(quoted(["x" * 1000] * 1000)) < 1200
