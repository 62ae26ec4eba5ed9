"""The files beside a policy's own that let LeRobot load its folder, with the plug-in ``lerobot_policy_wmjax``.

``config.json`` is LeRobot's description of a policy of the type ``wmjax``: its features and how it is run. The two
``policy_*processor.json`` are LeRobot's steps around it, which rename and batch; the policy normalises by itself.
"""

from pathlib import Path
from typing import Any

from wmjax.core.files import write_json
from wmjax.core.specs import ActionSpec, ObservationSpec
from wmjax.data.formats.lerobot.layout import load_layout
from wmjax.data.formats.lerobot.writer import plain_layout

LIBERO = "HuggingFaceVLA/libero"
"""The layout whose image columns LeRobot's LIBERO environment has too."""
DEVICE = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
RENAME = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
BATCH = {"registry_name": "to_batch_processor", "config": {}}


def camera_features(spec: ObservationSpec) -> dict[str, str]:
    """LeRobot's feature of each camera: those of its LIBERO environment, else ``observation.images.CAMERA``."""
    known = load_layout(LIBERO).cameras
    cameras = known if set(spec.cameras) <= set(known) else plain_layout(spec).cameras
    return {camera: cameras[camera] for camera in spec.cameras}


def lerobot_config(observation: ObservationSpec, action: ActionSpec) -> dict[str, Any]:
    """The ``config.json`` of a policy for LeRobot; the plug-in's ``WmjaxConfig`` reads it."""
    size, cameras = observation.image_size, list(camera_features(observation).values())
    images = {name: {"type": "VISUAL", "shape": [3, size, size]} for name in cameras}
    return {
        "type": "wmjax",
        "n_obs_steps": 1,
        "input_features": {**images, "observation.state": {"type": "STATE", "shape": [observation.state_dim]}},
        "output_features": {"action": {"type": "ACTION", "shape": [action.dim]}},
        "device": "cpu",
        "push_to_hub": False,
        "cameras": cameras,
        "open_loop_horizon": action.chunk - action.chunk % observation.frame_stride,
        "seed": 0,
    }


def write_lerobot_files(folder: Path, observation: ObservationSpec, action: ActionSpec) -> None:
    """Writes LeRobot's files into a policy's folder."""
    before, after = "policy_preprocessor", "policy_postprocessor"
    write_json(folder / "config.json", lerobot_config(observation, action))
    write_json(folder / f"{before}.json", {"name": before, "steps": [RENAME, BATCH, DEVICE]})
    write_json(folder / f"{after}.json", {"name": after, "steps": [DEVICE]})
