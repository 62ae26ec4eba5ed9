"""HTML pages about evaluations and datasets."""
