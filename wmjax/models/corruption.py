"""What an evaluation may do to the world memory, by name; imports nothing, so that protocols can name it too."""

from typing import Literal

Corruption = Literal["none", "zero", "noise", "shuffled", "closed"]
"""Nothing, all zeros (the mean latent), unit noise, another episode's memory, or an empty memory (the gate closed)."""
