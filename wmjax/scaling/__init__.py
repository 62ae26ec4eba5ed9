"""The cost of a training: the dry run, and estimates for hardware that is not available."""
