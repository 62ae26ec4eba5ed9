"""Tests of wmjax; pytest runs them."""

QUICK_FUSIONS = "--xla_cpu_use_fusion_emitters=false"
"""A flag of XLA with which programs compile in three quarters of the time."""
