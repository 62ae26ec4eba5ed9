"""wmjax: world-model-conditioned vision-language-action policies in JAX."""
