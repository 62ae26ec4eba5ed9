"""Running episodes in the simulator: protocols, actors, the runner and the results on disk."""
