"""A client of starVLA's protocol, as its ``websocket_policy_client`` and its LIBERO evaluation have it."""

from typing import Any

import numpy as np
from jaxtyping import Float

from wmjax.core.errors import UserError
from wmjax.serving.clients.client import Client, View
from wmjax.serving.clients.conventions import Conventions
from wmjax.serving.clients.openpi import GREETING_S
from wmjax.serving.packed import pack

SAMPLING = {"do_sample": False, "use_ddim": True, "num_ddim_steps": 10}
"""How the peers' evaluation lets a policy sample."""


class StarVLAClient(Client):
    """The server greets with a map; a request has a list of examples, here of one."""

    dialect = "starvla"
    raw_gripper = False

    def greet(self) -> None:
        """Reads the server's metadata.

        Raises:
            UserError: the server does not greet first, or does not send the length of its chunks.

        """
        self.card = self._read(GREETING_S, finite=False)
        if not isinstance(self.card.get("action_chunk_size"), int):
            raise UserError(f"{self.url} does not send its action_chunk_size; choose another --dialect")

    def implied(self) -> dict[str, Any]:
        """The conventions of starVLA's evaluation, which executes whole chunks."""
        return {"horizon": self.card["action_chunk_size"]}

    def ask(self, view: View, chosen: Conventions) -> None:
        """Sends one example."""
        images = [frames if self.own else frames[-1] for frames in view.images]
        example: dict[str, Any] = {"image": images, "lang": view.instruction}
        if view.state is not None:
            example["state"] = view.state[None]
        if self.own:
            example |= {"wmjax/episode": view.episode.key, "wmjax/step": view.step}
        self._send(pack({"examples": [example], "unnorm_key": chosen.unnorm_key or None, **SAMPLING}))

    def answer(self) -> Float[np.ndarray, "steps action"]:
        """The chunk of the one example.

        Raises:
            UserError: see :meth:`Client.answer`.

        """
        message = self._read()
        data, error = message.get("data"), message.get("error")
        if not message.get("ok") or not isinstance(data, dict):
            raise self._refused(error.get("message") if isinstance(error, dict) else error)
        actions = self._numbers(data.get("actions"))
        if actions.ndim != 3 or len(actions) != 1:
            raise UserError(f"{self.url} answers actions of the shape {list(actions.shape)} for one example")
        return actions[0]
