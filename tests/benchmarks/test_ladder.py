"""The ladder of defects: rungs one change apart, and faults that do what they say and are gone afterwards."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from benchmarks import ladder
from benchmarks.ladder_defects import PATCHES, __main__
from benchmarks.ladder_defects.flow_head import PriorFlowConfig, PriorFlowHead
from benchmarks.ladder_defects.inputs import AHEAD, see_ahead
from benchmarks.ladder_defects.learning import SHARE, round_to_bfloat16, true_share
from tests.data.synthetic import make_latents, make_store
from tests.models.vla_helpers import (
    BATCH,
    CHUNK,
    DIM,
    TOKENS,
    TinyBackbone,
    make_actions,
    make_inputs,
    make_vla,
    tiny_config,
    wake,
)
from wmjax.core.errors import UserError
from wmjax.core.provenance import provenance
from wmjax.core.settings import build as build_settings
from wmjax.core.settings import dotted
from wmjax.core.specs import EncoderSpec
from wmjax.data.loader import BatchSource, LoaderConfig
from wmjax.experiment.config import load
from wmjax.experiment.sweep_plan import Cell
from wmjax.models.backbones.qwen2_5_vl.prompt import PromptBuilder
from wmjax.models.heads.base import HeadConfig, HeadSizes, draw_noise
from wmjax.models.vla import VLA
from wmjax.models.world.memory import WorldMemory
from wmjax.pipeline import train
from wmjax.policy import policy
from wmjax.policy.carry import Carry
from wmjax.sim.libero import ACTION_SPEC
from wmjax.trainer import build
from wmjax.trainer.config import TrainConfig
from wmjax.trainer.optimizer import OptimizerConfig
from wmjax.trainer.sharding import MeshConfig, make_mesh, shard_batch

CHAIN = 18


@pytest.fixture(scope="module")
def rungs() -> list[ladder.Rung]:
    return ladder.rungs_of(ladder.read_ladder(ladder.PLAN))


@pytest.fixture(scope="module")
def cells(rungs: list[ladder.Rung]) -> list[Cell]:
    return ladder.cells_of(ladder.read_ladder(ladder.PLAN), rungs)


def settings_of(cell: Cell) -> dict[str, Any]:
    return dotted(cell.identity["experiment"])


def faults_of(cell: Cell) -> set[str]:
    return set(cell.through[1].split(",")) if cell.through else set()


def test_each_rung_of_the_chain_mends_one_defect(cells: list[Cell]) -> None:
    """Settings or a fault, never both, and only the settings that the defect names."""
    found = ladder.read_ladder(ladder.PLAN)
    assert len(found.defects) + 1 == CHAIN
    for before, after, (name, defect) in zip(cells, cells[1:CHAIN], found.defects.items(), strict=False):
        old, new = settings_of(before), settings_of(after)
        changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
        assert changed == set(dotted(defect.settings)), name
        assert faults_of(before) - faults_of(after) == ({name} if defect.patch else set()), name
        assert faults_of(after) <= faults_of(before) and bool(changed) != defect.patch, name


def test_the_chain_leads_from_the_stated_configuration_to_the_recipe(cells: list[Cell]) -> None:
    stated, recipe = cells[0].experiment, cells[CHAIN - 1].experiment
    lora = {"model": {"backbone": {"lora": {"rank": 16, "alpha": 32.0}}}}
    assert stated.model == load("prior_e2_mse", "mini", None, lora).model
    scale = load("prior_e2_mse", "prior_3b")
    assert stated.train.batch_size == scale.train.batch_size and stated.train.trainable == scale.train.trainable
    assert stated.optimizer.learning_rate == scale.optimizer.learning_rate
    assert faults_of(cells[0]) == set(PATCHES)
    assert recipe == load("e2_mse", "mini", None, {"train": {"steps": recipe.train.steps}}) and not cells[17].through


def test_all_rungs_have_the_same_recordings_episodes_and_samples(cells: list[Cell], rungs: list[ladder.Rung]) -> None:
    assert len({cell.experiment.data for cell in cells}) == len({cell.protocols for cell in cells}) == 1
    assert len({cell.experiment.train.batch_size * cell.experiment.train.steps for cell in cells}) == 1
    count = len(cells[0].protocols[0].episodes())
    assert count == 50 and all(0 <= low <= high <= count for low, high in (rung.expected for rung in rungs))


def test_the_results_page_states_the_expectations(rungs: list[ladder.Rung]) -> None:
    text = Path("docs/results.md").read_text()
    section = text[text.index("## Ladder of defects") :].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| .* \| (\d+) to (\d+) \| .* \|$", section, re.M)
    assert rows == [(str(number), *map(str, rung.expected)) for number, rung in enumerate(rungs)]


def test_rungs_are_listed_with_what_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = {f"libero_spatial/2/random/{index}": ["success" if index < 3 else "failure", 9] for index in range(10)}
    result = {"cell": "r01_mends_adapters_left_out", "seed": 0, "minutes": {"training": 1.0}}
    (tmp_path / "one.json").write_text(json.dumps({**result, "evaluations": {"spatial_dev": {"episodes": episodes}}}))
    assert ladder.main(["--list", "--rungs", "0-1,18", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == [
        "r00_predecessor",
        "r01_mends_adapters_left_out",
        "r18_only_adapters_left_out",
    ]
    assert "3/10" in lines[3] and "not run" in lines[2] and lines[-1].startswith("3 rungs, 33 min")


@pytest.mark.parametrize("text", ["29", "3-1", "two", "1,,2"])
def test_rungs_that_do_not_exist_are_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ladder.main(["--list", "--rungs", text]) == 2
    assert f"--rungs is {text!r}; give numbers from 0 to 28" in capsys.readouterr().err


def test_a_fault_or_defect_that_does_not_exist_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["empty_instructions", "wmjax.train"]) == 2
    assert "unknown fault 'empty_instructions'; did you mean empty_instruction" in capsys.readouterr().err
    path = tmp_path / "ladder.toml"
    path.write_text(ladder.PLAN.read_text().replace('defects = ["small_rate"]', 'defects = ["smal_rate"]'))
    with pytest.raises(UserError, match=r"ladder\.toml: unknown defect 'smal_rate'; did you mean small_rate"):
        ladder.read_ladder(path)


REPLACED = [
    (build, "make_optimizer"),
    (build, "initial_state"),
    (build, "make_train_step"),
    (build, "make_steps"),
    (VLA, "loss"),
    (WorldMemory, "__call__"),
    (PromptBuilder, "render"),
    (policy, "observe"),
    (train, "make_inputs"),
]


@pytest.mark.parametrize("name", PATCHES)
def test_a_fault_is_gone_after_its_context(name: str) -> None:
    before = [getattr(owner, attribute) for owner, attribute in REPLACED]
    with PATCHES[name]():
        assert [getattr(owner, attribute) for owner, attribute in REPLACED] != before
    assert [getattr(owner, attribute) for owner, attribute in REPLACED] == before


def tiny_build() -> tuple[build.Built, Mesh]:
    """The programs of a policy without state, with a stand-in for the VLM."""
    config = tiny_config("e2", head=build_settings(HeadConfig, {"kind": "regression"}), use_state=False)
    action = dataclasses.replace(ACTION_SPEC, chunk=CHUNK, state_offset=(0.0,) * 8, state_scale=(1.0,) * 8)
    numbers = {"mean": (0.0,) * DIM, "std": (1.0,) * DIM}
    specs = build.DataSpecs(action, EncoderSpec(cameras=("agentview",), dim=DIM, tokens_per_frame=TOKENS, **numbers))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    train, optimizer = TrainConfig(batch_size=BATCH, steps=3), OptimizerConfig(learning_rate=1e-3, warmup_steps=1)

    def make(rngs: nnx.Rngs) -> VLA:
        return VLA(config, rngs=rngs, backbone=TinyBackbone(rngs))

    return build.build(make, mesh, specs, train, optimizer, MeshConfig(), max_shift=0), mesh


def batch_with(sign: float) -> dict[str, np.ndarray]:
    """A batch whose future has this sign."""
    inputs, (action, mask) = make_inputs(), make_actions()
    arrays = {name: getattr(inputs, name) for name in ("images", "state", "latents", "future_mask")}
    arrays |= {"future": sign * inputs.future, "action": action, "action_mask": mask}
    plain = {name: np.asarray(value) for name, value in arrays.items()}
    return plain | {"task": np.zeros(BATCH, np.int32), "shift": np.zeros((BATCH, 2), np.int32)}


def test_steps_with_the_faults_of_learning() -> None:
    """One program has three of them: what stays, what is rounded, and what the gate's gradient depends on."""
    with contextlib.ExitStack() as stack:
        for name in ("adapters_left_out", "bfloat16_parameters", "true_futures_in_memory"):
            stack.enter_context(PATCHES[name]())
        built, mesh = tiny_build()
        first, guard, frozen = built.initialise().named()
        start, ends = jax.device_get(first.params), []
        prompt = jax.tree.map(lambda x: x[:1], make_inputs().prompt)
        for sign in (1.0, -1.0):
            state = jax.tree.map(jnp.copy, (first, guard))
            for _ in range(3):
                state = built.train_step(*state, frozen, shard_batch(batch_with(sign), mesh), prompt)[:2]
            ends.append(jax.device_get((state[0].params, state[0].opt)))
    (after, moments), (_, others) = ends
    still = {name for name in start if np.array_equal(start[name], after[name])}
    assert {"queries/value", "state_in/value", *(name for name in start if name.startswith("backbone/"))} <= still
    # At this rate an update is less than half of the distance from 1 to the next bfloat16 number.
    assert "world/injection/memory_norm/scale/value" in still
    assert {"head/mlp/up/kernel/value", "world/injection/gate/value", "world/prophet/out/kernel/value"}.isdisjoint(
        still
    )
    for name, values in (after | moments).items():
        np.testing.assert_array_equal(values, jax.device_get(round_to_bfloat16(jnp.asarray(values))), err_msg=name)
    gates = [name for name in moments if name.endswith("gate/value")]
    assert gates and all(not np.array_equal(moments[name], others[name]) for name in gates)


def test_small_updates_are_lost_in_bfloat16() -> None:
    kept, lost = round_to_bfloat16(jnp.array([1.0 + 2**-7, 1.0 + 2**-9]))
    assert (float(kept), float(lost)) == (1.0 + 2**-7, 1.0)


def test_the_loss_of_the_actions_depends_on_the_true_future_where_it_is_shown() -> None:
    model, (action, mask), key = wake(make_vla("e2", gate=1.0)), make_actions(), jax.random.key(0)
    graph, state = nnx.split(model)
    inputs = make_inputs()

    def action_loss(sign: float, share: float) -> jax.Array:
        """With a future of this sign, shown to this share of the samples."""
        token = SHARE.set(jnp.asarray(share))
        seen = inputs._replace(future=sign * inputs.future)
        try:
            return nnx.merge(graph, state).loss(seen, action, mask, key)[1]["action/loss"]
        finally:
            SHARE.reset(token)

    with PATCHES["true_futures_in_memory"]():
        leaking = jax.jit(action_loss)
        hidden, shown = ([float(leaking(sign, share)) for sign in (1.0, -1.0)] for share in (0.0, 1.0))
    assert hidden[0] == hidden[1] and len({hidden[0], *shown}) == 3
    np.testing.assert_allclose([true_share(0, 11), true_share(5, 11), true_share(10, 11)], [0.9, 0.5, 0.1], rtol=1e-6)


def test_clips_of_training_see_the_future(tmp_path: Path) -> None:
    """Channel 0 of these latents is the number of the frame whose clip they are from."""
    store = make_store(tmp_path / "store", lengths=(29, 18))
    latents = make_latents(tmp_path / "latents", store)
    config = LoaderConfig(batch_size=len(store.frame_step), shuffle=False, num_epochs=1, history=1, future=1)
    everything = np.arange(len(store.episodes))
    frames = [
        (BatchSource(store, each, everything, config)[0]["latents"][:, -1, 0, 0] * 128).round().astype(int)
        for each in (latents, see_ahead(latents, store))
    ]
    ends = np.array([entry["frame_start"] + entry["num_frames"] - 1 for entry in store.episodes])
    np.testing.assert_array_equal(frames[1], np.minimum(frames[0] + AHEAD, ends[store.frame_episode]))
    assert (frames[1] > frames[0]).any()


def test_a_rollout_begins_with_a_single_frame() -> None:
    """The encoder here tells the length of the clip that it was given."""

    def encode(clips: jax.Array) -> jax.Array:
        return jnp.full((len(clips), 2, 3), float(clips.shape[1]))

    carry = Carry(jnp.zeros((2, 4, 1, 8, 8, 3), jnp.uint8), jnp.zeros((2, 3, 2, 3)), jnp.zeros((2, 0, 0)))
    arguments = carry, jnp.zeros((2, 1, 1, 8, 8, 3), jnp.uint8), jnp.array([True, False]), encode
    with PATCHES["clips_see_ahead"]():
        seen = np.asarray(policy.observe(*arguments).latents)
    assert (seen[0] == 1).all() and (seen[1, -1] == 4).all()
    assert (np.asarray(policy.observe(*arguments).latents)[0] == 4).all()


def test_every_prompt_is_that_of_an_empty_instruction() -> None:
    prepare, tasks = PromptBuilder("mini", [(112, 112)], 8, 80), ("open the drawer", "pick up the black bowl")
    with PATCHES["empty_instruction"]():
        first, second = (prepare(task) for task in tasks)
        assert "user" in prepare.render(tasks[0]) and not any(task in prepare.render(task) for task in tasks)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert first.mask.sum() < prepare(tasks[0]).mask.sum()


def test_the_flow_head_of_the_predecessor_sees_one_step_at_a_time() -> None:
    config = PriorFlowConfig(width=8, steps=1)
    head = PriorFlowHead(config, HeadSizes(), hidden_dim=6, action_dim=3, grippers=1, chunk=4, rngs=nnx.Rngs(0))
    tokens, key = jax.random.normal(jax.random.key(1), (2, 4, 6)), jax.random.key(2)
    moved = np.asarray(head.sample(tokens.at[:, 1].add(1.0), key) != head.sample(tokens, key)).any(axis=(0, 2))
    assert moved.tolist() == [False, True, False, False]
    noise = draw_noise(key, (2, 4, 3))
    expected = noise + head.velocity(noise, jnp.ones((2, 4)), tokens)  # the only step is evaluated at its end
    np.testing.assert_allclose(head.sample(tokens, key), expected, rtol=1e-5)
    found = head.loss(tokens, noise, jnp.ones((2, 4), bool), key)
    assert np.isfinite(float(found.loss)) and set(found.metrics) == {"action/arm", "action/gripper"}


def test_a_result_names_the_command_of_a_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["benchmarks/ladder.py", "--rungs", "0"]
    monkeypatch.setattr("sys.argv", [str(Path(words[0]).resolve()), *words[1:]])
    monkeypatch.setattr("sys.orig_argv", ["/usr/bin/python3", *words])
    assert provenance()["command"] == "python benchmarks/ladder.py --rungs 0"


@pytest.mark.long
@pytest.mark.sim
def test_a_rung_runs_and_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four steps of rung 0, with all defects, and one episode."""
    monkeypatch.setenv("WMJAX_CACHE", str(tmp_path / "cache"))
    text = ladder.PLAN.read_text()
    for old, new in (('"mini"', '"smoke"'), ('"spatial_dev"', '"smoke"'), ("steps = 1000", "steps = 4")):
        text = text.replace(old, new)
    path = tmp_path / "tiny.toml"
    path.write_text(text.replace("steps = 4000", "steps = 5").replace("episodes = 10", "episodes = 1"))
    assert ladder.main(["--plan", str(path), "--rungs", "0"]) == 0
    result = json.loads((tmp_path / "tiny" / "r00_predecessor-s0.json").read_text())
    assert set(result["through"][1].split(",")) == set(PATCHES)
    assert len(result["evaluations"]["smoke"]["episodes"]) == 1
    monkeypatch.setattr("wmjax.pipeline.sweep.run_cell", None)
    assert ladder.main(["--plan", str(path), "--rungs", "0"]) == 0
