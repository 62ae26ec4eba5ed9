"""Flax NNX modules without side effects, each with its dataclass of settings and a table of checkpoint names."""
