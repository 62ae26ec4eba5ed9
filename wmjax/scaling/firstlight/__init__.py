"""What a user runs first on new hardware: every part of a training and an evaluation, checked and measured."""
