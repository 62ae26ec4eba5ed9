"""Qwen2.5-VL in Flax NNX, with LoRA and weights from Hugging Face checkpoints."""
