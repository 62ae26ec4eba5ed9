"""The PyTorch side of wmjax: V-JEPA 2 latents, mini pre-training, probes. The only package that imports torch."""
