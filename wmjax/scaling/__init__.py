"""What a training costs: the dry run, and memory, FLOPs, collectives and time on hardware that is not at hand."""
