"""Checks for new hardware, which run and measure every part of a training and an evaluation."""
