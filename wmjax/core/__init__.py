"""Definitions that every other folder uses: specs, errors, settings, files, paths, processes."""
