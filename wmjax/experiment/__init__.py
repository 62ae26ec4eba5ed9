"""An experiment: its settings, the checks on them, the plan of a run, and the dry run."""
