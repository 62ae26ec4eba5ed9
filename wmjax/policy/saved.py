"""Finds saved policies: a run's checkpoints, or a small folder that holds only a policy.

A policy's folder has two files: ``policy.safetensors``, the averaged parameters, and ``policy.json`` with the settings,
the specs, the SHA-256 of the parameters and a hash of its own content. :func:`save_policy` writes it from a run. One
such folder ships with wmjax under the name ``mini``.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array
from safetensors.flax import load_file, save

from wmjax.core.errors import UserError
from wmjax.core.files import atomic_path, hash_bytes, hash_json, write_json
from wmjax.core.location import Location, Remote, location
from wmjax.core.paths import cache_root
from wmjax.core.reading import read_json, typed
from wmjax.core.settings import Range
from wmjax.experiment.config import Experiment
from wmjax.policy.fetch import fetch_policy
from wmjax.policy.hub import PARAMETERS, PREFIX, SETTINGS, download_policy, is_on_hub
from wmjax.policy.places import ASSETS, Places, experiment_at
from wmjax.policy.restore import parameter_shapes, restore_model
from wmjax.trainer import checkpoint

FORMAT_VERSION = 1
SHIPPED = Path(__file__).parent / "shipped"
"""One folder per policy that ships with wmjax."""
Parameters = dict[str, Array]
Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class SavedPolicy:
    """A policy on disk.

    Attributes:
        folder: of the checkpoint or of the policy.
        evaluations: where results of its evaluations go by default.
        step: of the training.
        hash: of the parameters.
        meta: the settings (``experiment``), the specs, and the hashes of prompt and backbone.
        read: the averaged parameters by name, in float32, like the given shapes.
        home: of the run or of the policy, which may hold copies of what the settings name.
        places: what to use in place of folders that the settings name.

    """

    folder: Path
    evaluations: Path
    step: int
    hash: str
    meta: dict[str, Any]
    read: Callable[[Shapes], Parameters]
    home: Path
    places: Places = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The settings of the training, with the locations that are valid here."""
        if "experiment" not in self.meta:
            raise UserError(f"{self.folder}: the settings of its training are missing; name another run or policy")
        return experiment_at(self.meta["experiment"], self.home, self.places)

    def parameters(self) -> Parameters:
        """The averaged trained parameters, by name.

        Raises:
            UserError: a damaged file, or parameters of another network.

        """
        return self.read(parameter_shapes(self.experiment))

    def model(self) -> Any:
        """The network (:func:`wmjax.policy.restore.restore_model`), with the averaged parameters.

        Raises:
            UserError: a damaged file, or the backbone's published weights are not those it was trained on.

        """
        return restore_model(self.experiment, self.parameters(), self.meta.get("backbone_hash"))


def find_policy(path: str | Location, places: Places | None = None, *, acts: bool = True) -> SavedPolicy:
    """Finds a policy by its location.

    Args:
        path: a run's folder, whose newest checkpoint is taken, one of its checkpoints, a policy's folder, the name
            of a policy that ships with wmjax (``mini``), unless a folder of that name is here,
            ``hub:OWNER/NAME[@REVISION]`` (:mod:`wmjax.policy.hub`), or a URL (:mod:`wmjax.policy.fetch`).
        places: what to use in place of folders that its settings name, as on another machine.
        acts: whether a run that trained its Prophet alone is refused.

    Raises:
        UserError: there is none, it does not act, or its files are damaged or of another version.

    """
    if is_on_hub(path):
        name = str(path).removeprefix(PREFIX).partition("@")[0].replace("/", "--")
        return _read_folder(download_policy(str(path)), places or {}, name)
    place = location(path)
    folder = fetch_policy(place) if isinstance(place, Remote) else place
    if not folder.exists() and (SHIPPED / str(path) / SETTINGS).is_file():
        folder = SHIPPED / str(path)
    if (folder / SETTINGS).is_file():
        return _read_folder(folder, places or {}, folder.resolve().name)
    folder = checkpoint.find(folder)
    manifest = checkpoint.read_manifest(folder)
    if acts and manifest["meta"].get("experiment", {}).get("train", {}).get("objective") == "world":
        raise UserError(
            f"run {path} has trained a Prophet alone (train.objective 'world'), which does not act; train a policy "
            "that starts from it with --train.init_from, or name another run"
        )
    return SavedPolicy(
        folder,
        checkpoint.evaluations(folder),
        manifest["step"],
        hash_json(manifest["sha256"]),
        manifest["meta"],
        lambda like: checkpoint.restore(folder, "ema", like),
        folder.parent.parent,
        places or {},
    )


def save_policy(path: str | Path, out: Path, dtype: Literal["float32", "bfloat16"] = "bfloat16") -> None:
    """Writes a policy as a folder of two files, and of the copies that its run keeps of encoder and tokenizer.

    Args:
        path: what :func:`find_policy` takes.
        out: an empty or new folder.
        dtype: of the stored parameters; they act in float32 again. bfloat16 halves the size and rounds each parameter
            to 8 bits.

    Raises:
        UserError: ``out`` holds files, or there is no policy.

    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {str(out)!r} is not an empty folder; choose another or delete it")
    found = find_policy(path)
    content = save({name: value.astype(dtype) for name, value in found.parameters().items()})
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / PARAMETERS) as temporary:
        temporary.write_bytes(content)
    if (found.home / ASSETS).is_dir():
        shutil.copytree(found.home / ASSETS, out / ASSETS)
    values = {"format_version": FORMAT_VERSION, "step": found.step, "sha256": hash_bytes(content), "meta": found.meta}
    write_json(out / SETTINGS, {**values, "seal": hash_json(json.loads(json.dumps(values)))})


@dataclasses.dataclass(frozen=True)
class _Content:
    """A policy's ``policy.json``; ``seal`` is the hash of all else in it."""

    step: Annotated[int, Range(0)]
    sha256: str
    meta: dict[str, Any]
    seal: str


def _read_folder(folder: Path, places: Places, name: str) -> SavedPolicy:
    """A policy's folder; ``name`` begins that of its evaluations' folder."""
    path, fix = folder / SETTINGS, "export the policy again"
    values = read_json(path, dict[str, Any], fix)
    if values.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path}: format_version is not {FORMAT_VERSION}; {fix} with this version")
    content: _Content = typed(values, _Content, str(path), fix)
    # One flipped bit in it would be another action, of a policy that loads.
    if content.seal != hash_json({name: value for name, value in values.items() if name != "seal"}):
        raise UserError(f"{path}: its content is not that which was written (seal {content.seal}); {fix}")
    digest = content.sha256
    results = cache_root() / "evaluations" / f"{name}-{digest[:8]}"
    read = functools.partial(_read_parameters, folder, digest)
    return SavedPolicy(folder, results, content.step, digest[:16], content.meta, read, folder, places)


def _read_parameters(folder: Path, digest: str, like: Shapes) -> Parameters:
    """The parameters in float32, checked against their hash and against the network's names and shapes."""
    path = folder / PARAMETERS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; export the policy again") from error
    if hash_bytes(content) != digest:
        raise UserError(f"{path}: sha256 is not that in {SETTINGS}; the file is damaged, export the policy again")
    values = load_file(path)
    shapes = [{name: leaf.shape for name, leaf in tree.items()} for tree in (like, values)]
    if shapes[0] != shapes[1]:
        name = sorted(dict(shapes[0].items() ^ shapes[1].items()))[0]
        raise UserError(
            f"{path}: {name} has the shape {shapes[1].get(name)}, the network of this version {shapes[0].get(name)}; "
            "export the policy again with this version"
        )
    return {name: jax.device_put(jnp.asarray(value, like[name].dtype)) for name, value in values.items()}
