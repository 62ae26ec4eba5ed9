"""Action heads, which turn action tokens into a chunk of normalised actions."""
