"""The names of what an evaluation may do to the world memory. Imports nothing, so that protocols can use them."""

from typing import Literal

Corruption = Literal["none", "zero", "noise", "shuffled", "shuffled_in_task", "closed"]
"""Nothing, all zeros (the mean latent), unit noise, another episode's memory (of any task, or of the same task), or an
empty memory (the gate closed)."""

SHUFFLED: tuple[Corruption, ...] = ("shuffled", "shuffled_in_task")
"""Those that show the memory of another episode and so need one (:mod:`wmjax.policy.interventions`)."""
