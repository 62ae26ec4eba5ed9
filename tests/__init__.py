"""Tests of wmjax; pytest runs them."""

from importlib.metadata import version

_JAXLIB = tuple(int(part) for part in version("jaxlib").split(".")[:2])
QUICK_FUSIONS = "--xla_cpu_use_fusion_emitters=false" if _JAXLIB < (0, 11) else ""
"""A flag of XLA with which tests take a fifth less CPU time: programs compile faster and are as good for them. Versions
without the flag end a process that names it."""
