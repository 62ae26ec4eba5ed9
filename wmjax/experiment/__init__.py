"""An experiment: its settings, the checks on them, and the plan of a run."""
