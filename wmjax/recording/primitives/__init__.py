"""Primitives of the scripted expert, one module per way to make a predicate of a goal true, and what they stand on.

``put`` and ``turn`` are primitives; ``motion`` holds the steps that they share, ``grasp`` and ``canonical`` choose
grasps, and ``privileged_scene`` reads the simulation.
"""
