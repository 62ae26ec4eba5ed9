"""SIGINT, SIGTERM and SIGHUP end a command within seconds, in one line, with the status that shells expect."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wmjax.core.signals import GRACE

ROOT = Path(__file__).parents[1]
WAYS = {
    "in Python": "while True: time.sleep(0.01)",
    "in C": "block()",  # as in a compilation, which Python does not interrupt
    "with a worker": "work()",
}
CODE = """
import ctypes, contextlib, multiprocessing, sys, time
from wmjax.core import signals
from wmjax.core.command import run_command
def block():
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex), lock(mutex)
def work():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=False)
    child.start()
    print(child.pid, flush=True)
    time.sleep(600)
def body():
    print("ready", flush=True)
    {body}
sys.modules["__main__"].__spec__ = type("Spec", (), {{"name": "wmjax.test"}})
sys.exit(run_command(body))
"""


def heed_signals() -> None:
    """Signals do what they do in a terminal: a shell ignores SIGINT for what it starts in the background."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(body: str) -> subprocess.Popen:
    line = [sys.executable, "-c", CODE.format(body=body)]
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=heed_signals
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("way", ["in Python", "in C", "with a worker"])
def test_a_signal_ends_a_command_in_one_line(name: str, way: str) -> None:
    process, number = start(WAYS[way]), getattr(signal, name)
    if way == "with a worker":
        assert process.stdout is not None
        child = int(process.stdout.readline())
    began = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert error.startswith(f"stopped by {name}") and error.endswith("run the same command again to resume\n")
    assert error.count("\n") == 1
    assert time.monotonic() - began < (GRACE + 1.5 if way != "in Python" else 3)
    if way == "with a worker":
        while is_running(child):
            assert time.monotonic() - began < 20
            time.sleep(0.05)


def test_where_work_would_be_lost_a_signal_waits() -> None:
    body = """
    with signals.postponed():
        print("postponed", flush=True)
        while not signals.requested():
            time.sleep(0.01)
        time.sleep(signals.GRACE + 1)
        print("saved", flush=True)
        signals.stop_if_requested("step 3 is saved")"""
    process = start(body)
    assert process.stdout is not None and process.stdout.readline() == "postponed\n"
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 143 and out == "saved\n"
    assert error == "stopped by SIGTERM, step 3 is saved; run the same command again to resume\n"


def test_who_presses_ctrl_c_twice_does_not_wait() -> None:
    process = start("""
    with signals.postponed():
        print("postponed", flush=True)
        while not signals.requested():
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(600)""")
    assert process.stdout is not None and process.stdout.readline() == "postponed\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "earlier checkpoints are whole" in error


def test_under_nohup_a_closed_terminal_means_nothing() -> None:
    line = ["nohup", sys.executable, "-c", CODE.format(body="time.sleep(1); return 0")]
    process = subprocess.Popen(line, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0


def test_handlers_are_restored_and_what_runs_next_is_not_stopped() -> None:
    from wmjax.core import signals
    from wmjax.core.command import run_command

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def body() -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    assert run_command(body) == 143
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    with signals.postponed():
        assert not signals.requested()
