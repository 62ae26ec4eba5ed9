"""Running episodes in the simulator, and what follows from their outcomes."""
