"""Serves a trained policy to other programs over a WebSocket.

python -m wmjax.serve --run RUN --listen openpi:8000

Clients of openpi's protocol (``pip install --no-deps openpi-client``) connect as they are; docs/serving.md has the
messages. On any address but loopback the environment variable WMJAX_API_KEY must hold a key, which clients show.
"""

import argparse
import os
import sys

from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    logs.set_up()
    return run_command(lambda: _run(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m wmjax.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--run", required=True, help="a run, a checkpoint, or a policy's folder or name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--listen", action="append", help="DIALECT:PORT, may be repeated; default openpi:8000")
    parser.add_argument("--max-batch", type=int, default=1, help="decisions per call of the policy; 1 suits a CPU")
    parser.add_argument("--max-wait-ms", type=float, default=2.0, help="how long a decision waits to share a call")
    parser.add_argument("--horizon", type=int, help="control steps that clients execute of a chunk; default all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the policy's noise")
    parser.add_argument("--max-sessions", type=int, default=64, help="connections at once")
    parser.add_argument("--idle-s", type=float, default=600.0, help="seconds after which a silent client is dropped")
    parser.add_argument("--max-message-mb", type=float, default=16.0, help="largest message")
    return parser


def _run(options: argparse.Namespace) -> int:
    try:
        from wmjax.serving.run import serve_run
        from wmjax.serving.server import Settings
    except ModuleNotFoundError as error:
        if error.name not in ("websockets", "msgpack"):
            raise
        raise UserError(f"{error.name} is not installed; run pip install 'wmjax[serve]'") from None
    settings = Settings(
        host=options.host,
        listen=tuple(options.listen or Settings.listen),
        max_batch=options.max_batch,
        max_wait_ms=options.max_wait_ms,
        max_sessions=options.max_sessions,
        idle_s=options.idle_s,
        max_message=int(options.max_message_mb * 2**20),
        seed=options.seed,
        api_key=os.environ.get("WMJAX_API_KEY", ""),
    )
    serve_run(options.run, settings, options.horizon)
    return 0


if __name__ == "__main__":
    sys.exit(main())
