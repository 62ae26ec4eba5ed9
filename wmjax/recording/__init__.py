"""Demonstrations and random motion, recorded in the simulator."""
