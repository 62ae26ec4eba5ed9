"""LIBERO with our conventions: environment, scripted expert, recorder, worker processes."""
