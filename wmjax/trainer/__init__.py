"""State, step, loop, metrics, mesh and sharding rules."""
