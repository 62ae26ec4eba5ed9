"""Vision-language models that the policy is built on."""
