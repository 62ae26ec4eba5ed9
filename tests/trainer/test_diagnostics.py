"""A whole diagnosis of a tiny model, and what it is made from; test_diagnostics_references.py has the formulas."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.data.synthetic import make_latents, make_store
from tests.tiny import LATENT_DIM, tiny_config
from wmjax import diagnose as command
from wmjax.core.errors import UserError
from wmjax.core.rng import named_key
from wmjax.core.specs import to_dict
from wmjax.data.latents import LatentStore
from wmjax.data.split import SOURCE_ROW
from wmjax.data.statistics import normalise_action, normalise_latents
from wmjax.diagnostics import diagnosis, probe
from wmjax.diagnostics.diagnosis import diagnose, predict
from wmjax.diagnostics.gradients import gradient_section, summarise
from wmjax.diagnostics.passes import Condition, Network, batches, memory_conditions
from wmjax.diagnostics.samples import action_windows, latent_windows, near_change
from wmjax.diagnostics.section import Skipped, plain
from wmjax.experiment.config import load as load_experiment
from wmjax.models.parameters import to_named
from wmjax.models.prompts import PromptConfig
from wmjax.models.vla import VLA
from wmjax.models.world.config import WorldMemoryConfig
from wmjax.pipeline.demonstrations import find_store
from wmjax.pipeline.diagnose import write_picture
from wmjax.pipeline.latents import find_latents
from wmjax.policy.interventions import Donors
from wmjax.trainer.config import Inputs, TrainConfig
from wmjax.trainer.inputs import make_inputs
from wmjax.trainer.step import model_input

RNG = np.random.default_rng
CONFIG = TrainConfig(batch_size=4, validation_fraction=0.3, threads=1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    store = make_store(tmp_path_factory.mktemp("store"))
    latents = make_latents(tmp_path_factory.mktemp("latents"), store, dim=LATENT_DIM)
    return make_inputs(store, latents, PromptConfig(length=56), tiny_config(), CONFIG)


@pytest.fixture(scope="module")
def model() -> VLA:
    """Tiny, with everything that starts at zero opened, so that every part has an effect."""
    built = jax.jit(lambda: nnx.split(VLA(tiny_config(), rngs=nnx.Rngs(0))))()
    made: VLA = nnx.merge(*built)
    assert made.world.injection is not None and made.world.prophet is not None
    made.world.injection.gate[...] = np.ones_like(made.world.injection.gate[...])
    for kernel in (made.world.prophet.out.kernel, made.head.out.kernel):  # type: ignore[union-attr]
        kernel[...] = 0.1 * jax.random.normal(jax.random.key(1), kernel.shape)
    return made


def test_parts_of_one_recorded_episode_are_kept_together(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out rows, retrieved frames and shuffled memories of another episode are of another recording."""
    store, latents = inputs.store, inputs.latents
    assert isinstance(latents, LatentStore)
    for index, row in ((1, 0), (2, 41), (3, 59)):  # tasks 1, 0 and 1 of one recording
        monkeypatch.setitem(store.episodes[index], "source_episode", 7)
        monkeypatch.setitem(store.episodes[index], SOURCE_ROW, row)
    frames = np.array([entry["frame_start"] for entry in store.episodes])
    assert latent_windows(inputs, frames, 3, 4, np.asarray).episode.tolist() == [0, 1, 1, 1, 4, 5]
    monkeypatch.setattr(probe, "FITTED", 1)
    assert probe._split([store])[0][frames].tolist() == [0, 1, 1, 1, 4, 5]
    donors = Donors(store, latents, 3, inputs.prompts)
    for corruption, own, others in (
        ("shuffled", 2, {0, 4, 5}),
        ("shuffled_in_task", 3, {5}),
        ("shuffled", 4, {0, 1, 2, 3, 5}),
    ):
        entry = store.episodes[own]
        chosen = {donors.choose(RNG(i), corruption, entry["suite"], entry["task_id"], own) for i in range(100)}
        assert chosen == others
    names = [condition.name for condition in memory_conditions(tiny_config(), store)]
    assert "shuffled_in_task" in names
    monkeypatch.setitem(store.episodes[5], "source_episode", 7)
    monkeypatch.setitem(store.episodes[5], SOURCE_ROW, 109)  # now the second task is of one recording alone
    left = [condition.name for condition in memory_conditions(tiny_config(), store)]
    assert left == [name for name in names if name != "shuffled_in_task"]


def test_with_one_training_episode_the_references_of_the_world_are_skipped(inputs: Inputs, model: VLA) -> None:
    alone = dataclasses.replace(inputs, train_episodes=inputs.train_episodes[:1])
    sections = diagnosis._prophet_sections(model, alone, inputs, np.arange(3), np.zeros((3, 4, 16, LATENT_DIM)), "")
    assert sections.keys() == {"world", "probe", "rotation_probe"}
    assert all(isinstance(each, Skipped) and "two training episodes" in each.skipped for each in sections.values())


def test_windows_come_from_the_stores(inputs: Inputs) -> None:
    """By the synthetic data's own marks: state[0] is the episode, state[1] the step; latent channel 0 the frame."""
    store = inputs.store
    assert inputs.latents is not None and inputs.encoder_spec is not None
    start = store.episodes[3]["frame_start"]
    frames = np.array([start, start + 5, start + store.episodes[3]["num_frames"] - 1])
    windows = latent_windows(inputs, frames, 3, 4, np.asarray)
    raw = np.asarray(inputs.latents.latents[0][start + np.array([3, 4, 5])], np.float32)
    np.testing.assert_allclose(windows.history[1], normalise_latents(raw, inputs.encoder_spec), rtol=1e-5)
    np.testing.assert_array_equal(windows.history[0, 0], windows.history[0, 2])
    after = np.asarray(inputs.latents.latents[0][start + np.array([6, 7, 8, 9])], np.float32)
    np.testing.assert_allclose(windows.future[1], normalise_latents(after, inputs.encoder_spec), rtol=1e-5)
    assert windows.mask[0].all() and not windows.mask[2].any()
    np.testing.assert_array_equal(windows.position[1, :, 1], [20, 24, 28, 32, 36])
    assert (windows.position[..., 0] == 3).all() and (windows.episode == 3).all()
    actions = action_windows(inputs, frames)
    row = store.frame_row[frames[1]]
    np.testing.assert_array_equal(actions.action[1], store.action[row : row + 8])
    assert actions.closed_before[:, 0].tolist() == [False, *(store.action[store.frame_row[frames[1:]] - 1, -1] > 0)]
    first = store.episodes[3]["step_start"]
    closed = store.action[first : first + store.episodes[3]["length"], -1] > 0
    np.testing.assert_array_equal(actions.near_change[1], near_change(closed[:, None])[20:28])


@pytest.mark.slow
def test_the_passes_act_as_the_policy_does(inputs: Inputs, model: VLA) -> None:
    network, batch = Network(model, inputs, 0), next(batches(inputs, "val", 1, 4, 0))
    prompts = jax.tree.map(jax.numpy.asarray, inputs.prompts)
    graph, state = nnx.split(model)
    hidden = network.hidden(batch)
    key, memory_key = named_key(0, "diagnose noise", 5, 1), named_key(0, "diagnose memory", 5)

    @jax.jit
    def sample(state: nnx.State, batch: dict[str, jax.Array]) -> list[jax.Array]:
        seen = model_input(batch, prompts, inputs.action_spec, inputs.encoder_spec)
        kinds = ("none", "noise", "closed")
        return [
            nnx.merge(graph, state).sample(seen, key, corruption=kind, corruption_key=memory_key)[0] for kind in kinds
        ]

    for kind, expected in zip(("none", "noise", "closed"), sample(state, batch), strict=True):
        acted = network.act(hidden, batch, 5, Condition(kind, corruption=kind, draw=1))  # type: ignore[arg-type]
        np.testing.assert_allclose(acted.chunk, expected, atol=1e-5)


@pytest.mark.slow
def test_a_whole_diagnosis(inputs: Inputs, model: VLA, tmp_path: Path) -> None:
    found = diagnose(model, inputs, "val", 2, 0)
    sections = found.sections
    assert found.imagined is not None
    with Image.open(write_picture(tmp_path / "imagined.png", found.imagined, inputs)) as picture:
        assert picture.width > 5 * 96 and picture.height > 5 * 96 * len(found.imagined.frames)
    content = json.loads(json.dumps(plain(sections), allow_nan=False))
    assert not any(isinstance(section, Skipped) for section in sections.values())
    for section in sections.values():
        assert len(section.table().splitlines()) > 2
    assert np.shape(content["actions"]["r2"]) == (8, 7)
    effects = content["memory"]["effects"]
    both = "closed, images black"
    assert list(effects) == ["none", "zero", "noise", "shuffled", "shuffled_in_task", "closed", both]
    assert effects["none"]["change"] == 0.0 and min(effects[k]["change"] for k in list(effects)[1:]) > 1e-4
    seen = content["inputs"]["effects"]
    means = [np.array(part[name]["r2"][:6]) for part, name in ((seen, "none"), (seen, "mean of 8 noise draws"))]
    assert (means[1] > means[0]).all()  # of an untrained flow head: averaging takes the noise out
    assert effects[both]["change"] not in (seen["images black"]["change"], effects["closed"]["change"])
    assert seen["images black"]["change"] > 0 and seen["another task's instruction"]["change"] > 0
    assert seen["none"]["r2"] == effects["none"]["r2"] == content["actions"]["r2_all"]
    assert content["memory"]["gate"] == pytest.approx(np.tanh(1.0), rel=1e-5)
    world = {part: norms[1] > 0.0 for part, norms in content["gradients"]["norm"].items()}
    assert {part for part, reached in world.items() if reached} == {"Prophet"} and len(world) == 5
    frames = np.flatnonzero(np.isin(inputs.store.frame_episode, inputs.val_episodes))
    windows = action_windows(inputs, frames)
    complete = windows.mask.all(1)
    whole = normalise_action(windows.action[complete], inputs.action_spec, windows.state[complete])[..., :6]
    assert content["flow"]["loss"]["zero velocity"] == pytest.approx(np.square(whole).mean() + 1, rel=1e-5)
    assert content["flow"]["chunks"] == len(whole) and sum(content["world"]["samples"]) > 0


def test_other_variants_say_what_does_not_apply(inputs: Inputs) -> None:
    """Without running a network: what is skipped follows from the configuration."""
    from wmjax.diagnostics.diagnosis import prophet_of

    assert memory_conditions(tiny_config("e0"), inputs.store) == []
    assert prophet_of(tiny_config("e0")) == ("this variant has no world memory", "")
    assert "never trained" in prophet_of(tiny_config("e1"))[1]
    assert prophet_of(tiny_config("e2")) == ("", "")
    names = [condition.name for condition in memory_conditions(tiny_config("e0plus"), inputs.store)]
    assert names == ["zero", "noise", "closed", "closed, images black"]
    shown = dataclasses.replace(
        tiny_config("e0plus"), memory=WorldMemoryConfig(input="future", world_loss=0.0, target="branch")
    )
    other, *inside = memory_conditions(shown, inputs.store)
    assert other.name == "another sample's future" and [each.name for each in inside] == ["zero", "noise", "closed"]
    batch = {"future": np.arange(3), "images": np.arange(3)}
    changed = other.change(batch, np.random.default_rng(0))
    assert changed["future"].tolist() == [2, 0, 1] and changed["images"].tolist() == [0, 1, 2]
    assert Skipped("why").table() == "skipped: why"


@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("e0", "regression"),
        *(pytest.param(*p, marks=pytest.mark.long) for p in (("e0plus", "flow"), ("e2aux", "regression"))),
    ],
)
def test_every_kind_of_variant_is_diagnosed(inputs: Inputs, variant: str, head: str) -> None:
    config = tiny_config(variant, head)
    built = jax.jit(lambda: nnx.split(VLA(config, rngs=nnx.Rngs(0))))()
    theirs = inputs if variant == "e2aux" else dataclasses.replace(inputs, latents=None, encoder_spec=None)
    sections = diagnose(nnx.merge(*built), theirs, "val", 1, 0).sections
    skipped = {name for name, section in sections.items() if isinstance(section, Skipped)}
    assert {"actions", "inputs"} & skipped == set() and ("flow" in skipped) == (head == "regression")
    assert ("world" in skipped) == ("gradients" in skipped) == (variant != "e2aux") and ("memory" in skipped) == (
        variant != "e0plus"
    )
    if variant == "e0plus":  # every episode has the same memory: shuffling it is no test
        assert list(plain(sections)["memory"]["effects"]) == ["none", "zero", "noise", "closed", "closed, images black"]  # type: ignore[index]
    assert np.shape(plain(sections)["actions"]["r2"]) == (8, 7)  # type: ignore[index]


def test_a_prophet_predicts_the_same_in_parts(model: VLA) -> None:
    history = RNG(0).normal(size=(300, 3, 16, LATENT_DIM)).astype(np.float32)
    assert model.world.prophet is not None
    found = predict(model.world, history)
    np.testing.assert_allclose(found[290:], model.world.prophet(jax.numpy.asarray(history[290:])), atol=1e-5)


def test_data_that_differ_from_the_checkpoint_are_refused(inputs: Inputs) -> None:
    meta = inputs.meta()
    inputs.require_same(meta)
    for name in ("split", "store"):
        with pytest.raises(UserError, match=rf"{name} differs: '\w+' in the training data, 'another'"):
            inputs.require_same(meta | {name: "another"})
    specs = inputs.specs()
    other = dataclasses.replace(inputs.action_spec, chunk=9)
    with pytest.raises(UserError, match=r"ActionSpec.chunk differs: 8 in the training data, 9 in the checkpoint"):
        inputs.require_same(meta | {"specs": specs | {"action": to_dict(other)}})


def test_missing_demonstrations_are_never_recorded(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path))
    experiment = load_experiment("e2_flow")
    with pytest.raises(UserError, match=r"are not in the cache; name the run's training store with --data"):
        find_store(experiment, None)
    assert list(tmp_path.iterdir()) == []
    assert find_store(experiment, inputs.store.folder).hash == inputs.store.hash


def test_another_encoder_is_refused_before_anything_is_encoded(inputs: Inputs) -> None:
    experiment = load_experiment("e2_flow")
    assert find_latents(experiment, inputs.store, None) is None
    with pytest.raises(UserError, match=r"EncoderSpec\.\w+ differs: .* in the settings encoder\.\*, .*"):
        find_latents(experiment, inputs.store, inputs.specs()["encoder"])


def test_the_command_names_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--run", str(tmp_path / "missing")]) == 2
    assert "is not a folder" in capsys.readouterr().err


@pytest.mark.long
def test_the_gradients_of_both_losses_are_those_of_their_sum(inputs: Inputs) -> None:
    """|a + w|² = |a|² + |w|² + 2 |a| |w| cos, part by part, against the gradient of the whole loss.

    Over two batches, the second mostly filler: that does not count, whatever it holds.
    """
    graph, made = jax.jit(lambda: nnx.split(VLA(tiny_config("e2aux", "regression"), rngs=nnx.Rngs(0))))()
    kernel = made["world"]["prophet"]["out"]["kernel"]  # zero at the start: nothing behind it would have a gradient
    kernel[...] = 0.1 * jax.random.normal(jax.random.key(1), kernel.shape)
    stream = list(batches(inputs, "train", 2, 32, 0))
    real = [batch["sample_mask"] for batch in stream]
    assert real[0].all() and 0 < real[1].sum() < 16
    spoilt = [b | {"action": np.where(r[:, None, None], b["action"], 9.0)} for b, r in zip(stream, real, strict=True)]
    found = gradient_section(nnx.merge(graph, made), inputs, spoilt, nnx.Param, 0)
    reached = [{part for part, norms in found.norm.items() if norms[i] > 0.0} for i in (0, 1)]
    assert reached == [{"VLM", "state and action queries", name} for name in ("action head", "Prophet")]
    assert found.samples == sum(map(np.sum, real))

    prompts = jax.tree.map(jax.numpy.asarray, inputs.prompts)

    @jax.jit
    @jax.grad
    def gradient(params: nnx.State, batch: dict[str, jax.Array], number: int) -> jax.Array:
        seen = model_input(batch, prompts, inputs.action_spec, inputs.encoder_spec)
        mask = batch["sample_mask"][:, None]
        seen = seen._replace(future_mask=seen.future_mask & mask)
        action = normalise_action(batch["action"], inputs.action_spec, batch["state"])
        key = named_key(0, "diagnose gradients", number)
        network = nnx.merge(graph, params)
        return network.loss(seen, action, batch["action_mask"] & mask, key, train=False)[0] * mask.sum()

    each = [to_named(gradient(made, batch, number)) for number, batch in enumerate(stream)]
    whole = {name: np.stack([sum(part[name] for part in each) / found.samples] * 2) for name in each[0]}
    expected = summarise(whole, 0.0, found.samples)
    for part, (a, w) in found.norm.items():
        together = a**2 + w**2 + (2 * a * w * found.cosine[part] if a and w else 0.0)
        assert np.sqrt(together) == pytest.approx(expected.norm[part][0], rel=1e-3)
