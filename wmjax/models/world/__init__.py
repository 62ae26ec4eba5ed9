"""The world memory: what predicts it (the Prophet), what it is trained on, and how it enters the policy."""
