"""The diagnosis of a checkpoint: each number beside that of a trivial predictor."""
