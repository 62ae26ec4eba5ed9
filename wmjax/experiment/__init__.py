"""An experiment: its settings from four axes, the checks on them, and what a dry run says of it."""
