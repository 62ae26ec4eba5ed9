"""Primitives of the scripted expert: one module per way to make a predicate of a goal true."""
