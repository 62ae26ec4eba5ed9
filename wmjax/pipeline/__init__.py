"""The stages of a run: demonstrations, latents, training, evaluation, verdict."""
