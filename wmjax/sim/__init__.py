"""LIBERO with our conventions: environment, rendering and worker processes."""
