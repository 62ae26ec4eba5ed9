"""Statistics of results and of latents: intervals, paired tests, ridge regression, effective rank."""
