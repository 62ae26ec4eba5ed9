"""What every other room uses: specs, errors, settings, files, paths, processes."""
