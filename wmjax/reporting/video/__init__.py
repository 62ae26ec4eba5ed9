"""Videos of episodes, and the strips drawn below them."""
