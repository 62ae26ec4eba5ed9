"""Actions that are learned as differences to the state at which their chunk is decided."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from wmjax.core.errors import UserError
from wmjax.core.specs import ActionSpec, ObservationSpec, from_dict, to_dict
from wmjax.data.episode import EpisodeData
from wmjax.data.statistics import action_spec, delta_indices, denormalise_action, normalise_action
from wmjax.data.store import TrainingStore, finalize, write_part
from wmjax.models.inputs import ModelInput
from wmjax.sim.libero import ACTION_SPEC, OBSERVATION_SPEC
from wmjax.trainer.step import initial_state, make_train_step

OBSERVATION = ObservationSpec(
    ("top",), ("lift", "pan", "speed", "grip"), ("rad", "rad", "rad/s", ""), 30.0, image_size=14, frame_stride=2
)
ACTION = ActionSpec(
    ("pan", "grip", "raise"), ("rad", "", "rad"), grippers=(1,), gripper_open=(0.0,), gripper_closed=(1.0,)
)
CHUNK = 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrainingStore:
    """Joints that are anywhere in +-3 rad and are told to move by some hundredths of it."""
    folder, rng = tmp_path_factory.mktemp("store"), np.random.default_rng(0)
    for index, length in enumerate((17, 24)):
        state = rng.uniform(-3, 3, 4) + np.cumsum(rng.normal(0, 0.02, (length, 4)), axis=0)
        action = state[:, [1, 3, 0]] + rng.normal(0, 0.01, (length, 3))
        action[:, 1] = rng.integers(0, 2, length)
        steps = np.arange(0, length, 2, dtype=np.int32)
        meta = {"suite": "bench", "task_id": 0, "instruction": "lift", "seed": index}
        columns = state.astype(np.float32), action.astype(np.float32), action.astype(np.float32)
        images = np.zeros((len(steps), 1, 14, 14, 3), np.uint8)
        write_part(folder, str(index), EpisodeData(images, steps, *columns, np.zeros(0), meta), OBSERVATION)
    return finalize(folder, OBSERVATION, ACTION)


def windows(store: TrainingStore, delay: int) -> tuple[np.ndarray, np.ndarray]:
    """The state of each frame and its chunk without what is behind the episode's end, plainly; [samples, ...]."""
    states, actions = [], []
    for entry in store.episodes:
        end = entry["step_start"] + entry["length"]
        for row in range(entry["step_start"], end, 2):
            for step in range(row + delay, min(row + delay + CHUNK, end)):
                states.append(store.state[row])
                actions.append(store.action[step])
    return np.stack(states), np.stack(actions)


@pytest.mark.parametrize("delay", [0, 4])
def test_statistics_are_those_of_the_differences(store: TrainingStore, delay: int) -> None:
    spec = action_spec(store, np.arange(2), CHUNK, "mean_std", ["pan", "raise=lift"], delay)
    assert spec.relative_to == (1, -1, 0)
    state, action = windows(store, delay)
    differences = action[:, [0, 2]].astype(np.float64) - state[:, [1, 0]]
    np.testing.assert_allclose(np.array(spec.offset)[[0, 2]], differences.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.array(spec.scale)[[0, 2]], np.maximum(differences.std(0), 0.02), rtol=1e-4)
    whole = action_spec(store, np.arange(2), CHUNK, "mean_std")
    assert whole.relative_to == () and min(whole.scale[0], whole.scale[2]) > 5 * max(spec.scale[0], spec.scale[2])
    assert (spec.offset[1], spec.scale[1]) == (0.5, 0.5)


def test_every_action_of_a_chunk_is_relative_to_the_state_of_its_decision(store: TrainingStore) -> None:
    spec = action_spec(store, np.arange(2), CHUNK, "quantile", ["raise=lift"])
    state = store.state[[3, 9]]
    chunk = np.stack([store.action[3 : 3 + CHUNK], store.action[9 : 9 + CHUNK]])
    normal = normalise_action(chunk, spec, state)
    lift = (chunk[..., 2] - state[:, None, 0] - np.float32(spec.offset[2])) / np.float32(spec.scale[2])
    np.testing.assert_allclose(normal[..., 1], lift, rtol=1e-6)  # the gripper comes last
    np.testing.assert_array_equal(normal[..., 2], np.where(chunk[..., 1] == 1, 1, -1))
    np.testing.assert_allclose(denormalise_action(normal, spec, state), chunk, atol=1e-6)
    np.testing.assert_allclose(np.asarray(normalise_action(jnp.asarray(chunk), spec, state)), normal, rtol=1e-6)
    still = denormalise_action(np.zeros((1, CHUNK, 3), np.float32), spec, state[:1])
    np.testing.assert_allclose(still[0, :, 2], state[0, 0] + spec.offset[2], rtol=1e-6)
    assert normal.dtype == np.float32


@pytest.mark.parametrize("deltas", [[], ["pan"]])
def test_a_delay_that_leaves_no_action_is_refused(store: TrainingStore, deltas: list[str]) -> None:
    assert action_spec(store, np.arange(2), CHUNK, "mean_std", deltas, 23).dim == 3
    with pytest.raises(UserError, match=r"train\.delay is 24, but the longest training episode of .* has 24 control"):
        action_spec(store, np.arange(2), CHUNK, "mean_std", deltas, 24)


def test_all_are_the_dimensions_that_the_state_has_by_name() -> None:
    assert delta_indices(["all"], OBSERVATION, ACTION) == (1, -1, -1)
    assert delta_indices([], OBSERVATION, ACTION) == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tilt"], "the actions have no 'tilt'; choose of pan, grip, raise"),
        (["raise"], "the state have no 'raise'; choose of lift, pan, speed, grip"),
        (["grip"], "'grip' is a gripper command; leave it out"),
        (["pan", "pan=lift"], "'pan' occurs twice"),
        (["pan=speed"], "'pan' is in 'rad' as an action and in 'rad/s' in the state"),
    ],
)
def test_wrong_names_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=r"train\.delta_actions is .*") as error:
        delta_indices(names, OBSERVATION, ACTION)
    assert message in str(error.value)


def test_the_deltas_of_libero_are_no_targets() -> None:
    with pytest.raises(UserError, match=r"no dimension of the actions \(dx, .*\) has the name of a value of the state"):
        delta_indices(["all"], OBSERVATION_SPEC, ACTION_SPEC)
    with pytest.raises(UserError, match=r"'dx' is in '0\.05 m' as an action and in 'm' in the state"):
        delta_indices(["dx=x"], OBSERVATION_SPEC, ACTION_SPEC)


def test_a_file_without_the_field_means_no_differences(store: TrainingStore) -> None:
    plain = action_spec(store, np.arange(2), CHUNK, "mean_std")
    assert "relative_to" not in to_dict(plain) and from_dict(ActionSpec, to_dict(plain), "x") == plain
    spec = action_spec(store, np.arange(2), CHUNK, "mean_std", ["pan"])
    assert to_dict(spec)["relative_to"] == [1, -1, -1] and from_dict(ActionSpec, to_dict(spec), "x") == spec


@pytest.mark.parametrize("wrong", [(1, 0, -1), (4, -1, -1), (-2, -1, -1), (1, -1)])
def test_an_impossible_description_is_refused(store: TrainingStore, wrong: tuple[int, ...]) -> None:
    spec = action_spec(store, np.arange(2), CHUNK, "mean_std", ["pan"])
    with pytest.raises(UserError, match=r"ActionSpec\.relative_to"):
        dataclasses.replace(spec, relative_to=wrong)


class Witness(nnx.Module):
    """Reports what it is given."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.zeros(()))

    def loss(self, inputs: ModelInput, action: jax.Array, *_: object, **__: object) -> tuple[jax.Array, dict]:
        return self.weight.get_value(), {"state": inputs.state, "pending": inputs.pending, "action": action}


def test_noise_of_the_state_is_none_of_the_differences(store: TrainingStore) -> None:
    """The difference that is learned is that of the data: a head that learned the noise would sample it."""
    spec = action_spec(store, np.arange(2), CHUNK, "mean_std", ["pan", "raise=lift"])
    batch = {
        "state": store.state[[3, 9]],
        "action": np.stack([store.action[3 : 3 + CHUNK], store.action[9 : 9 + CHUNK]]),
        "pending": store.action[[[2], [8]]],
        "action_mask": np.ones((2, CHUNK), bool),
        "task": np.zeros(2, int),
    }
    graph, params = nnx.split(Witness())
    optimizer = optax.sgd(0.0)
    step = make_train_step(graph, optimizer, spec, None, seed=0, ema_decay=0.9, max_shift=0, state_noise=0.5)
    prompts = jnp.zeros((1, 1))
    _, seen = step(initial_state(params, optimizer), nnx.State({}), jax.tree.map(jnp.asarray, batch), prompts)
    for name in ("action", "pending"):
        np.testing.assert_allclose(seen[name], normalise_action(batch[name], spec, batch["state"]), atol=1e-5)
    noise = np.asarray(seen["state"]) - (batch["state"] - np.array(spec.state_offset)) / np.array(spec.state_scale)
    assert 0.2 < np.std(noise) < 1.0
