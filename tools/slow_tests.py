"""Writes ``tests/slow.txt`` from the log of a whole test run.

python -m pytest -n 2 --dist loadfile -v --durations=0 > LOG; python tools/slow_tests.py LOG

``tests/conftest.py`` marks the tests in that file as slow, so that the fast tier (CONTRIBUTING.md) is quick. Where a
fixture that several tests of a file share takes long, all tests of the file are: the next one would set it up.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path

SECONDS = 2.0
"""A test that takes longer, on two cores with an empty compilation cache, is slow."""
LINE = re.compile(r"\s*([\d.]+)s (call|setup|teardown)\s+(\S.*?)\s*$")
OUT = Path(__file__).parents[1] / "tests" / "slow.txt"


def slow(log: str, seconds: float = SECONDS) -> list[str]:
    """The tests, or whole files, of which a log of pytest with durations says that they took longer."""
    calls: dict[str, float] = defaultdict(float)
    files = set()
    for line in log.splitlines():
        if not (found := LINE.match(line)):
            continue
        time, phase, name = float(found[1]), found[2], found[3]
        if phase == "setup" and time >= seconds:
            files.add(name.partition("::")[0])
        calls[name] += time
    return sorted(
        files | {name for name, time in calls.items() if time >= seconds and name.partition("::")[0] not in files}
    )


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path)
    names = slow(parser.parse_args().log.read_text(encoding="utf-8"))
    head = f"# Tests that took {SECONDS:g} s, and files whose fixtures did; from tools/slow_tests.py.\n"
    OUT.write_text(head + "".join(f"{name}\n" for name in names), encoding="utf-8")
    print(f"{OUT}: {len(names)}")


if __name__ == "__main__":
    main()
