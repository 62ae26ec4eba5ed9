"""Layers that the models share: attention, transformer blocks, stacked layers, LoRA."""
