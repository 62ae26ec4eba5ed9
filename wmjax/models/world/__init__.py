"""The world memory: the Prophet that predicts it, the loss that trains it, and its injection into the policy."""
