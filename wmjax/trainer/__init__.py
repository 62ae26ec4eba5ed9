"""Training: state, step, loop, metrics, mesh and sharding rules."""
