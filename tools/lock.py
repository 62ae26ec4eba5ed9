"""Remakes ``uv.lock``, and the pins of Python 3.12 and 3.13 from it.

    python tools/lock.py    # needs uv and an index

The versions of Python 3.11 are those of ``constraints/py311.txt``, with which the tests run; they are written to the
end of pyproject.toml, where uv reads them. Those of newer Pythons are the newest that fit. Run it after a change of the
dependencies.
"""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTED, NEWER = ROOT / "constraints/py311.txt", ROOT / "constraints/py312.txt"
UNLIKE = {"pillow", "pymdown-extensions"}
"""Packages whose tested version fits not every extra (trackers want an older pillow), or not every Python 3.11."""
SECTION = "[tool.uv]  # written by tools/lock.py\nconstraint-dependencies = [\n"
"""Where uv's constraints begin in pyproject.toml."""
EVERYWHERE = {"torch"}
"""Packages whose tested version is pinned for all Pythons."""


def pins() -> dict[str, str]:
    """The tested versions by name, as PEP 503 spells names."""
    lines = (line.partition("#")[0].strip() for line in TESTED.read_text(encoding="utf-8").splitlines())
    return {normalised(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def normalised(name: str) -> str:
    """A package's name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> list[str]:
    """What uv has to keep to."""
    until = {name: "" if name in EVERYWHERE else "; python_version < '3.12'" for name in pins()}
    return [f"{name}=={version}{until[name]}" for name, version in sorted(pins().items()) if name not in UNLIKE]


def main() -> None:
    """Writes the three files."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition(f"\n{SECTION}")[0]
    items = "".join(f'    "{line}",\n' for line in constraints())
    (ROOT / "pyproject.toml").write_text(f"{project}\n{SECTION}{items}]\n", encoding="utf-8")
    subprocess.run(["uv", "lock", "--quiet"], cwd=ROOT, check=True)
    export = ["uv", "export", "--frozen", "--quiet", "--all-extras", "--all-groups", "--no-emit-project", "--no-hashes"]
    lines = subprocess.run(export, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    selected = [line for line in lines if "==" in line and "python_full_version < '3.12'" not in line]
    head = "# Exact versions for Python 3.12 and 3.13, from uv.lock. Remake: python tools/lock.py\n"
    NEWER.write_text(head + "\n".join(selected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
