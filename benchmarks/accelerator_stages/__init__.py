"""The stages of ``benchmarks/accelerator.py``, one module each, with a function ``run(session)``."""
