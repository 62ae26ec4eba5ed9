"""Renders a report in headless Chromium: ``python tools/screenshot_report.py report.html out.png [--width 400]``.

Needs Chromium: ``apt-get install -y chromium``. To look at the result is the point: tests check structure, not beauty.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=60000",
)
DARK, LIGHT = 0, 1
FRAME = '<!DOCTYPE html><body style="margin:0"><iframe src="{url}" style="border:0;width:{width}px;height:{height}px">'
MARGIN = 24


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path, help="a .png file")
    parser.add_argument("--width", type=int, default=1280, help="of the page, CSS pixels; 400 is a phone")
    parser.add_argument("--height", type=int, default=12000, help="of the window; an empty rest is cut off")
    parser.add_argument("--dark", action="store_true", help="prefer the dark colour scheme")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"error: none of {', '.join(BROWSERS)} is installed; run `apt-get install -y chromium`", file=sys.stderr)
        return 2
    if not options.report.is_file():
        print(f"error: {options.report} is not a file; write it with `python -m wmjax.report`", file=sys.stderr)
        return 2
    return _screenshot(browser, options)


def _screenshot(browser: str, options: argparse.Namespace) -> int:
    out, width, height = options.out.resolve(), options.width, options.height
    out.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        # A window has a minimum width, a frame does not: so narrow pages are narrow.
        page = Path(folder) / "frame.html"
        page.write_text(
            FRAME.format(url=options.report.resolve().as_uri(), width=width, height=height), encoding="utf-8"
        )
        command = [
            browser,
            *FLAGS,
            f"--user-data-dir={folder}/profile",
            f"--window-size={max(width, 500)},{height}",
            f"--blink-settings=preferredColorScheme={DARK if options.dark else LIGHT}",
            f"--screenshot={out}",
            page.as_uri(),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if not out.is_file():
        print(f"error: {browser} took no picture:\n{result.stderr[-2000:]}", file=sys.stderr)
        return 1
    _trim(out, width)
    print(out)
    return 0


def _trim(path: Path, width: int) -> None:
    """Cuts off what lies right of the page and the empty rows below its end."""
    pixels = np.asarray(Image.open(path).convert("RGB"))[:, :width]
    used = np.flatnonzero((pixels != pixels[-1, 0]).any((1, 2)))
    end = min(used[-1] + MARGIN, len(pixels)) if len(used) else len(pixels)
    Image.fromarray(pixels[:end]).save(path)


if __name__ == "__main__":
    sys.exit(main())
