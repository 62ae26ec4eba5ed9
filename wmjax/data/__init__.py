"""Training stores, latent stores, statistics and the Grain loader."""
