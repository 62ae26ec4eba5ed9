"""Observations, stores, statistics, LeRobot datasets and the Grain pipeline."""
