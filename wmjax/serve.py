"""Serves a trained policy to other programs over a WebSocket.

python -m wmjax.serve --run RUN --listen openpi:8000

Clients of openpi's protocol (``pip install --no-deps openpi-client``) connect as they are; docs/serving.md has the
messages. On any address but loopback the environment variable WMJAX_API_KEY must hold a key, which clients show.
"""

import os
import sys
from collections.abc import Sequence

from wmjax.core import logs
from wmjax.core.command import run_command
from wmjax.core.errors import UserError
from wmjax.core.options import CommandParser
from wmjax.core.settings import build
from wmjax.serving.settings import SHORTS, ServeSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = CommandParser("serve", __doc__)
    parser.add_argument("--run", required=True, help="folder or URL of a run, checkpoint or policy, or its name")
    parser.add_settings("serve", SHORTS, ServeSettings)  # the class: an instance imports a dialect

    def body() -> int:
        options, settings = parser.read(arguments)
        try:
            from wmjax.serving.run import serve_run
        except ModuleNotFoundError as error:
            if error.name not in ("websockets", "msgpack"):
                raise
            raise UserError(f"{error.name} is not installed; run pip install 'wmjax[serve]'") from None
        values = {"api_key": os.environ.get("WMJAX_API_KEY", ""), **settings["serve"]}
        serve_run(options.run, build(ServeSettings, values, "serve."))
        return 0

    logs.set_up()
    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
