"""The latent export that both backends share: its options, the encoding and the verification of a store.

Any setting of the encoder is given as ``--encoder.name VALUE``, as to the train command; the common ones have short
options.
"""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from typing import Any, get_args

from wmjax.core.command import whole_number
from wmjax.core.errors import UserError
from wmjax.core.location import Location, local, location
from wmjax.core.options import CommandParser, Short
from wmjax.core.settings import build, merge, parse_integer, quoted
from wmjax.core.shards import parse_shard
from wmjax.data.latents import Dtype, LatentStore
from wmjax.data.store import TrainingStore
from wmjax.encoders.base import EncoderConfig, Exporter, default_encoder
from wmjax.encoders.encode import BATCH, LATENT_BOUNDS, encode_store, verify_latents


def parse_grid(text: str) -> int:
    """A pooling grid from the command line; 0 for ``none``.

    Raises:
        UserError: neither ``none`` nor a number that a grid can have.

    """
    if text == "none":
        return 0
    rows, _, columns = text.partition("x")
    number = parse_integer(rows)
    if number is None or columns not in ("", rows):
        raise UserError(
            f"grid is {quoted(text)}; give a number that divides the encoder's grid, such as 4 or 4x4, or none"
        )
    return number


SHORTS = {
    "model": Short("model", "mini, vitl, vitg, a hub id, or a Hugging Face checkpoint folder", str),
    "views": Short("views", "shifted copies per episode, the first unshifted"),
    "max-shift": Short("max_shift", "largest shift of the other views, pixels"),
    "grid": Short("pooling_grid", "tokens along an edge, such as 4 or 4x4; none keeps every token", parse_grid),
    "clip": Short("clip_length", "frames per clip"),
    "precision": Short("precision", "float32, tf32 or bfloat16; policies on these latents compute them in the same"),
    "camera": Short(
        "cameras", "one, or several separated by commas; the first if not given", lambda text: text.split(",")
    ),
}
"""The settings of the encoder that have a short option, by option."""


def add_arguments(parser: CommandParser) -> None:
    """The options that both export commands share."""
    parser.add_argument("--data", type=location, required=True, help="training store")
    parser.add_argument("--out", type=location, required=True, help="latent store to write")
    parser.add_settings("encoder", SHORTS, default_encoder())
    parser.add_argument("--batch", type=whole_number("batch", 1), default=BATCH, help="clips per call of the encoder")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float16", help="type of the stored latents")
    parser.add_argument(
        "--verify",
        type=whole_number("verify", 1),
        metavar="N",
        help="encode nothing: check the hashes of the store at --out and re-encode N random latents of it with --model",
    )
    parser.add_argument(
        "--shard",
        help="i/n: encode every n-th episode, from the i-th; under srun or jax.distributed each process takes its own",
    )


MakeExporter = Callable[[Any], Exporter]


def encoder_config(settings: dict[str, Any], backend: str) -> EncoderConfig:
    """The encoder's settings from the command line, checked by what they set.

    Raises:
        UserError: no setting of the encoder, or a value that it cannot have.

    """
    return build(EncoderConfig, {"backend": backend, **settings["encoder"]}, "encoder.")


def run(options: argparse.Namespace, settings: dict[str, Any], make: MakeExporter, *, backend: str) -> int:
    """Encodes and verifies, for either backend; ``make`` builds the encoder of the settings. Returns 0."""
    if options.verify is not None:
        verify(options, settings, make, backend)
        return 0
    shard = parse_shard(options.shard)
    config = encoder_config(settings, backend)
    out, store = local(options.out), TrainingStore(options.data)
    config = config.with_default_camera(store.spec.cameras)
    encoder = make(config)
    terminal = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if terminal or done % 20 == 0 or done == total:
            print(f"\rencoded {done}/{total} episodes", end="" if terminal else "\n", file=sys.stderr, flush=True)

    latents = encode_store(
        store,
        out,
        encoder,
        views=config.views,
        max_shift=config.max_shift,
        batch=options.batch,
        dtype=options.dtype,
        shard=shard,
        progress=progress,
    )
    if latents is None:
        print(f"{options.out}: this shard is done, others are not")
        return 0
    worst = verify_latents(store, latents, encoder)
    print(f"{options.out}: latents {latents.latents.shape}, backend {latents.backend}, verified (largest {worst:.1e})")
    taken = _settings(config.with_spec(latents.spec), options.out, store.spec.cameras)
    print(f"train on them: python -m wmjax.train --data.path {options.data} {taken}")
    return 0


def verify(options: argparse.Namespace, settings: dict[str, Any], make: MakeExporter, backend: str) -> None:
    """Checks an existing store: hashes, then a random sample against the encoder, which may be of the other backend.

    Raises:
        UserError: bytes that changed, another encoder or source, or a latent that differs; the status is then 2.

    """
    store, latents = TrainingStore(options.data), LatentStore(options.out)
    latents.check(store)
    store.verify()
    latents.verify()
    stored = merge({"encoder": {"kind": latents.spec.kind}}, settings)
    encoder = make(encoder_config(stored, backend).with_spec(latents.spec))
    worst = verify_latents(store, latents, encoder, options.verify)
    print(
        f"{options.out}: all hashes are right; of {options.verify} random latents encoded again, the largest "
        f"difference is {worst:.1e} of the RMS (bound {LATENT_BOUNDS[latents.spec.precision]:g})"
    )


def _settings(config: EncoderConfig, out: Location, cameras: tuple[str, ...]) -> str:
    """The settings with which the train command takes this store; ``cameras`` are the demonstrations'."""
    changed: dict[str, Any] = {"path": str(out)}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "cameras" and value == cameras[:1]:
            continue
        if field.name not in ("path", "backend") and value != field.default:
            changed[field.name] = value
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in changed.items()}
    return " ".join(f"--encoder.{name} {shlex.quote(value)}" for name, value in text.items())
