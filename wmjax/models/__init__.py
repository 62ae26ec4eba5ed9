"""Pure Flax NNX modules, each with its small config dataclass and a table of checkpoint names."""
