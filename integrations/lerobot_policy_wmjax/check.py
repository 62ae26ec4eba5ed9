"""Checks the plug-in with the real LeRobot, see ``try.sh``: ``python check.py FOLDER``, which is recreated.

1. ``wmjax.export --format lerobot`` writes the policy ``mini``; LeRobot finds the plug-in and loads the folder.
2. Two recorded episodes are shown to it through LeRobot's processors, step by step, as ``lerobot-eval`` shows an
   environment. The actions are those of ``wmjax.load_policy`` on the same frames, bit for bit.
3. ``lerobot-eval --policy.path=FOLDER`` runs one episode of LIBERO.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch


def use_torchvision() -> None:
    """Makes torchvision importable beside a CPU build of torch.

    The torchvision of PyPI is built for CUDA and cannot load its operators without it. Nothing here calls them, but
    importing torchvision describes one of them, which has to be known then.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


use_torchvision()

import jax  # noqa: E402
from lerobot.configs.policies import PreTrainedConfig  # noqa: E402
from lerobot.envs.configs import LiberoEnv  # noqa: E402
from lerobot.policies.factory import make_policy, make_pre_post_processors  # noqa: E402
from lerobot.scripts import lerobot_eval  # noqa: E402
from lerobot.utils.import_utils import register_third_party_plugins  # noqa: E402

import wmjax  # noqa: E402
from wmjax import export  # noqa: E402
from wmjax.core.rng import named_key  # noqa: E402
from wmjax.models.prompts import join_prompts  # noqa: E402

STORE = Path(__file__).parents[2] / "tests" / "fixtures" / "two_episodes"
STEPS = 40
"""Control steps that are compared: five decisions."""


def observed(store: wmjax.TrainingStore, step: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Frames ``[2, cameras, size, size, 3]``, states ``[2, state]`` and sentences of both episodes."""
    entries = store.episodes[:2]
    frames = [store.frames[e["frame_start"] + step // store.spec.frame_stride] for e in entries]
    states = [store.state[e["step_start"] + step] for e in entries]
    return np.stack(frames), np.stack(states), [e["instruction"] for e in entries]


def through_lerobot(folder: Path, store: wmjax.TrainingStore) -> np.ndarray:
    """The actions ``[steps, 2, action]`` by LeRobot's own way from a folder to an action."""
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    policy = make_policy(config, env_cfg=LiberoEnv(observation_height=112, observation_width=112))
    overrides = {"device_processor": {"device": "cpu"}, "rename_observations_processor": {"rename_map": {}}}
    before, after = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=overrides)
    policy.reset()
    actions = []
    for step in range(STEPS):
        frames, states, sentences = observed(store, step)
        images = torch.from_numpy(frames).permute(1, 0, 4, 2, 3).float() / 255  # as lerobot.envs.utils makes them
        batch = dict(zip(config.cameras, images, strict=True))
        batch |= {"observation.state": torch.from_numpy(states), "task": sentences}
        with torch.inference_mode():
            actions.append(after(policy.select_action(before(batch))).numpy())
    return np.stack(actions)


def without_lerobot(place: str | Path, store: wmjax.TrainingStore, episode: int = 1, late: int = 0) -> np.ndarray:
    """The same by ``wmjax.load_policy``; frames that come ``late`` show that the comparison would see a difference."""
    policy, stride = wmjax.load_policy(place, batch_size=2), store.spec.frame_stride
    carry, horizon, actions = policy.initial_carry(), policy.open_loop_horizon, []
    for number, step in enumerate(range(0, STEPS, horizon)):
        due = range(step - horizon + stride, step + 1, stride)
        images = np.stack([observed(store, max(0, at - late))[0] for at in due], 1)
        _, states, sentences = observed(store, step)
        prompt = join_prompts([policy.prompt(sentence) for sentence in sentences])
        keys = [named_key(0, f"rollout/lerobot/{row}/random/{episode}", number) for row in range(2)]
        observation = wmjax.Observation(images, states, prompt, np.full(2, number == 0))
        carry, chunk, _ = policy(carry, observation, jax.numpy.stack(keys))
        actions.append(np.asarray(chunk).swapaxes(0, 1)[:horizon])
    return np.concatenate(actions)


def require(holds: bool, what: str) -> None:
    """Says what was checked, and ends with an error if it does not hold."""
    print(f"{'ok' if holds else 'FAILED'}: {what}", flush=True)
    if not holds:
        raise SystemExit(1)


def evaluate(folder: Path, out: Path) -> dict:
    """One short episode by ``lerobot-eval``, and what it writes about it."""
    sys.argv = [
        "lerobot-eval",
        f"--policy.path={folder}",
        "--env.type=libero",
        "--env.task=libero_spatial",
        "--env.task_ids=[2]",
        "--env.init_states=false",  # those are pickles, which the package of wmjax does not have
        "--env.observation_height=112",
        "--env.observation_width=112",
        "--env.episode_length=24",
        "--eval.batch_size=1",
        "--eval.n_episodes=1",
        f"--output_dir={out}",
    ]
    lerobot_eval.main()
    return json.loads((out / "eval_info.json").read_text())


def main() -> None:
    """Runs the three checks."""
    folder = Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    status = export.main(["--run", "mini", "--out", str(folder), "--format", "lerobot"])
    require(status == 0 and (folder / "config.json").is_file(), "the export wrote LeRobot's files")
    register_third_party_plugins()
    require("wmjax" in PreTrainedConfig.get_known_choices(), "LeRobot finds the plug-in by its name")
    store = wmjax.TrainingStore(STORE)
    found = through_lerobot(folder, store)
    require(found.shape == (STEPS, 2, 7), f"an action of 7 numbers for 2 rows at each of {STEPS} control steps")
    expected = without_lerobot("mini", store)
    require(np.array_equal(found, expected), "the actions are those of wmjax.load_policy, bit for bit")
    require(not np.array_equal(found, without_lerobot("mini", store, late=4)), "late frames would have changed them")
    require(not np.array_equal(found, without_lerobot("mini", store, episode=2)), "another episode's noise, too")
    info = evaluate(folder, folder.parent / "outputs")
    require(info["overall"]["n_episodes"] == 1, f"lerobot-eval ran an episode: {info['overall']}")


if __name__ == "__main__":
    main()
