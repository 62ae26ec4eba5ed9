"""What a training costs on hardware that is not at hand: memory, FLOPs, collectives and time of its compiled step."""
