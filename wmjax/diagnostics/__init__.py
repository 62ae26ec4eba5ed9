"""Metrics that cannot mislead: every number of a checkpoint beside the trivial predictor that it has to beat."""
