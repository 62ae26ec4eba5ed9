"""A client of openpi's protocol, as ``openpi_client.websocket_client_policy`` has it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float

from wmjax.core.errors import UserError
from wmjax.serving.clients.client import Client, View
from wmjax.serving.clients.conventions import Conventions
from wmjax.serving.packed import pack

GREETING_S = 30.0
"""A server of this protocol speaks first, and at once."""


class OpenPIClient(Client):
    """The server greets with a map; each packed observation gets packed actions.

    Attributes:
        timing: what the server says about the time of its last answer.

    """

    dialect = "openpi"
    timing: Mapping[str, Any] = MappingProxyType({})

    def greet(self) -> None:
        """Reads the server's metadata.

        Raises:
            UserError: the server does not speak first.

        """
        self.card = self._read(GREETING_S, finite=False)

    def ask(self, view: View, chosen: Conventions) -> None:
        """Sends an observation: of another program's server the newest frames alone."""
        sent: dict[str, Any] = {chosen.prompt_key: view.instruction}
        if view.state is not None:
            sent[chosen.state_key] = view.state
        if self.own:
            sent |= {
                f"observation/{camera}": images for camera, images in zip(chosen.cameras, view.images, strict=True)
            }
            sent |= {"wmjax/episode": view.episode.key, "wmjax/step": view.step}
        else:
            if len(chosen.image_keys) != len(chosen.cameras):
                raise UserError(
                    f"foreign.image_keys has {len(chosen.image_keys)} names for {len(chosen.cameras)} foreign.cameras; "
                    "give one each"
                )
            sent |= {key: images[-1] for key, images in zip(chosen.image_keys, view.images, strict=True)}
        self._send(pack(sent))

    def answer(self) -> Float[np.ndarray, "steps action"]:
        """The chunk.

        Raises:
            UserError: see :meth:`Client.answer`.

        """
        message = self._read()
        timing = message.get("server_timing")
        self.timing = timing if isinstance(timing, dict) else {}
        return np.atleast_2d(self._numbers(message.get("actions")))
