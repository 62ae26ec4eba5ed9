"""Stands for a training: ``python -m tests.slow_to_stop ...`` takes a second to save after SIGTERM."""

import signal
import sys
import time


def save(number: int, frame: object) -> None:
    time.sleep(1.0)
    print("saved", flush=True)
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, save)
    print("begun", flush=True)
    time.sleep(600)
