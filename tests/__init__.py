"""Tests of wmjax; pytest runs them."""

QUICK_FUSIONS = "--xla_cpu_use_fusion_emitters=false"
"""A flag of XLA with which tests take a fifth less CPU time: programs compile faster and are as good for them."""
