"""The one place where generated demos, latents and runs live: ``$WMJAX_CACHE``, else ``~/.cache/wmjax``."""

import os
from pathlib import Path


def cache_root() -> Path:
    """The cache folder (not created)."""
    return Path(os.environ.get("WMJAX_CACHE") or Path.home() / ".cache" / "wmjax")


def size_report(root: Path | None = None) -> str:
    """One line per second-level folder (``demos/...``, ``latents/...``, ``runs/...``) with its size in MB."""
    root = root or cache_root()
    lines = [f"cache {root}"]
    for folder in sorted(p for p in root.glob("*/*") if p.is_dir()):
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        lines.append(f"{size / 1e6:10.1f} MB  {folder.relative_to(root)}")
    return "\n".join(lines)
