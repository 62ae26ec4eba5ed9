"""The network and the encoder of a checkpoint, for everything that reads a run: policy, diagnosis, export."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from wmjax.core.errors import UserError
from wmjax.core.rng import named_key
from wmjax.core.specs import EncoderSpec, require_equal
from wmjax.encoders.base import ENCODERS, Encoder, EncoderConfig
from wmjax.experiment.config import Experiment
from wmjax.models.backbones.pretrained import backbone_folder, backbone_hash, load_backbone
from wmjax.models.parameters import from_named, split_model, to_named, trainable_filter
from wmjax.models.world_model import network

_held: contextvars.ContextVar[Mapping[str, Array] | None] = contextvars.ContextVar("held", default=None)


@contextlib.contextmanager
def sharing(frozen: Mapping[str, Array]) -> Iterator[None]:
    """In the block, networks of the training that holds these frozen parameters take them instead of a second copy.

    Args:
        frozen: by name, on the devices of the training.

    """
    token = _held.set(frozen)
    try:
        yield
    finally:
        _held.reset(token)


def restore_model(experiment: Experiment, params: dict[str, Array], base: str | None) -> Any:
    """The network: trained parameters from the checkpoint; frozen ones from the source that training used.

    It is a policy or a Prophet alone, as ``train.objective`` says.

    Raises:
        UserError: the backbone's published weights are not those that the policy was trained on.

    """

    def build() -> Any:
        rngs = nnx.Rngs(named_key(experiment.train.seed, "parameters"))
        return network(experiment.model, experiment.train.objective, rngs)

    trains = trainable_filter(experiment.train.trainable)
    graph, trainable, frozen = split_model(nnx.eval_shape(build), trains)
    trained = from_named(trainable, params)
    if (held := _held_on_first_device(frozen)) is not None:
        frozen = held
    elif jax.tree.leaves(frozen):
        frozen = jax.jit(lambda: split_model(build(), trains)[2])()
        if base is not None:
            folder = backbone_folder(experiment.train.backbone_weights)
            if (found := backbone_hash(folder)) != base:
                raise UserError(
                    f"train.backbone_weights in {folder} has the hash {found}, the checkpoint was trained on {base}; "
                    "use the weights that the policy was trained on"
                )
            _, frozen = load_backbone(folder, experiment.model.backbone, trained, frozen)
    return nnx.merge(graph, trained, frozen)


def _held_on_first_device(like: nnx.State) -> nnx.State | None:
    """The arrays of :func:`sharing`; None if there are none, others than those of ``like``, or only parts of them."""
    held, named = _held.get(), to_named(like)
    if held is None or not named or {k: v.shape for k, v in held.items()} != {k: v.shape for k, v in named.items()}:
        return None
    if not all(array.is_fully_replicated for array in held.values()):
        return None
    first = jax.local_devices()[0]
    shards = {name: [part.data for part in x.addressable_shards if part.device == first] for name, x in held.items()}
    return from_named(like, {name: found[0] for name, found in shards.items()}) if all(shards.values()) else None


def parameter_shapes(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """Names, shapes and types of the parameters that an experiment trains; nothing is computed."""
    model = nnx.eval_shape(lambda: network(experiment.model, experiment.train.objective, nnx.Rngs(0)))
    return to_named(split_model(model, trainable_filter(experiment.train.trainable))[1])


def restore_encoder(config: EncoderConfig, spec: EncoderSpec) -> Encoder:
    """The encoder that made the training latents, and no other.

    Args:
        config: says where its weights are.
        spec: of the latents.

    Raises:
        UserError: its weights differ, or are missing.

    """
    kind, config = ENCODERS.resolve(spec.kind), config.with_spec(spec)
    found = kind.describe(config)
    if found.weights_hash != spec.weights_hash:
        raise UserError(
            f"EncoderSpec.weights_hash is {spec.weights_hash} in the checkpoint, {found.weights_hash} of the encoder "
            f"{found.kind} {found.name!r}; set encoder.* to the encoder that the policy was trained with"
        )
    require_equal(found, spec, "the settings encoder.*", "the checkpoint", ignore=("name", "mean", "std"))
    return kind(config)
