"""Frozen video encoders whose latents the Prophet predicts, and the export of latents into a store."""
