"""Action heads: from action tokens to a chunk of normalised actions."""
