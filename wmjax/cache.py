"""The one place where generated demos, latents and runs live: ``$WMJAX_CACHE``, else ``~/.cache/wmjax``."""

import os
from pathlib import Path

COMPILED_BYTES = 2_000_000_000
"""Cap of the compiled programs kept; jax itself never evicts without one."""


def cache_root() -> Path:
    """The cache folder (not created)."""
    return Path(os.environ.get("WMJAX_CACHE") or Path.home() / ".cache" / "wmjax")


def keep_compiled_programs() -> None:
    """Lets jit reuse what an earlier process compiled (``<cache>/xla``), unless jax was told another folder."""
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
        jax.config.update("jax_compilation_cache_max_size", COMPILED_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def size_report(root: Path | None = None) -> str:
    """One line per second-level folder (``demos/...``, ``latents/...``, ``runs/...``) with its size in MB."""
    root = root or cache_root()
    lines = [f"cache {root}"]
    for folder in sorted(p for p in [*root.glob("*/*"), root / "xla"] if p.is_dir()):
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        lines.append(f"{size / 1e6:10.1f} MB  {folder.relative_to(root)}")
    return "\n".join(lines)
