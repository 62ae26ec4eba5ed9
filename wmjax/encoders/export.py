"""The latent export that both backends share: its options, the encoding and the verification of a store."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, get_args

from wmjax.core.errors import UserError
from wmjax.core.location import local, location
from wmjax.core.shards import parse_shard
from wmjax.core.specs import EncoderSpec
from wmjax.data.latents import Dtype, LatentStore
from wmjax.data.shift import MAX_SHIFT, VIEWS
from wmjax.data.store import TrainingStore
from wmjax.encoders.encode import BATCH, LATENT_BOUND, encode_store, require_numbers, verify_latents


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that both export commands share."""
    parser.add_argument("--data", type=location, required=True, help="training store")
    parser.add_argument("--out", type=location, required=True, help="latent store to write")
    parser.add_argument(
        "--model", default="mini", help="mini, vitl, vitg, a hub id, or a Hugging Face checkpoint folder"
    )
    parser.add_argument("--views", type=int, default=VIEWS, help="shifted copies per episode, the first unshifted")
    parser.add_argument("--max-shift", type=int, default=MAX_SHIFT, help="largest shift of the other views, pixels")
    parser.add_argument("--grid", default="4", help="pooling grid, such as 4 or 8; none keeps every token")
    parser.add_argument("--clip", type=int, default=4, help="frames per clip")
    parser.add_argument("--camera", default="agentview")
    parser.add_argument("--batch", type=int, default=BATCH, help="clips per call of the encoder")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="float16", help="of the stored latents")
    parser.add_argument(
        "--verify",
        type=int,
        metavar="N",
        help="encode nothing: check the hashes of the store at --out and re-encode N random latents of it with --model",
    )
    parser.add_argument(
        "--shard",
        help="i/n: encode every n-th episode, from the i-th; under srun or jax.distributed each process takes its own",
    )


def run(options: argparse.Namespace, make: Callable[..., Any]) -> int:
    """Encodes and verifies, for either backend; ``make(model, grid, clip, camera)`` builds the encoder. Returns 0."""
    if options.verify is not None:
        verify(options, make)
        return 0
    shard, grid = parse_shard(options.shard), parse_grid(options.grid)
    require_numbers(views=options.views, max_shift=options.max_shift, batch=options.batch)
    out, store = local(options.out), TrainingStore(options.data)
    encoder = make(options.model, grid, options.clip, options.camera)
    shown = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if shown or done % 20 == 0 or done == total:
            print(f"\rencoded {done}/{total} episodes", end="" if shown else "\n", file=sys.stderr, flush=True)

    latents = encode_store(
        store,
        out,
        encoder,
        views=options.views,
        max_shift=options.max_shift,
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
    print(f"train on them: python -m wmjax.train --data.path {options.data} {_settings(options, latents)}")
    return 0


def verify(options: argparse.Namespace, make: Callable[..., Any]) -> None:
    """Checks an existing store: hashes, then a random sample against the encoder, which may be of the other backend.

    Raises:
        UserError: bytes that changed, another encoder or source, or a latent that differs; the status is then 2.

    """
    if options.verify < 1:
        raise UserError(f"verify is {options.verify}; set it to at least 1")
    store, latents = TrainingStore(options.data), LatentStore(options.out)
    latents.check(store)
    store.verify()
    latents.verify()
    spec = latents.spec
    encoder = make(options.model, spec.pooling_grid, spec.clip_length, spec.camera)
    worst = verify_latents(store, latents, encoder, options.verify)
    print(
        f"{options.out}: all hashes are right; of {options.verify} random latents encoded again, the largest "
        f"difference is {worst:.1e} of the RMS (bound {LATENT_BOUND:g})"
    )


def parse_grid(text: str) -> int:
    """A pooling grid from the command line; 0 for ``none``.

    Raises:
        UserError: neither ``none`` nor a number that a grid can have.

    """
    if text == "none":
        return 0
    rows, _, columns = text.partition("x")
    if not rows.isdecimal() or columns not in ("", rows):
        raise UserError(f"grid is {text!r}; give a number that divides the encoder's grid, such as 4 or 4x4, or none")
    return int(rows)


def _settings(options: argparse.Namespace, latents: LatentStore) -> str:
    """The settings with which the train command takes this store."""
    spec, default = latents.spec, EncoderSpec()
    settings = (
        ("path", options.out, ""),
        ("model", options.model, "mini"),
        ("views", options.views, VIEWS),
        ("max_shift", options.max_shift, MAX_SHIFT),
        ("pooling_grid", spec.pooling_grid, default.pooling_grid),
        ("clip_length", spec.clip_length, default.clip_length),
        ("camera", spec.camera, default.camera),
    )
    return " ".join(f"--encoder.{name} {value}" for name, value, usual in settings if value != usual)
