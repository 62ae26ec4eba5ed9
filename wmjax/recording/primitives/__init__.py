"""Primitives of the scripted expert, one module per skill that makes a predicate of a goal true, and shared helpers.

``put`` and ``turn`` are primitives; ``motion`` holds the steps that they share, ``grasp`` and ``canonical`` choose
grasps, and ``privileged_scene`` reads the simulation.
"""
