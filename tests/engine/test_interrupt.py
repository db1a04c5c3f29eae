"""Interrupts: a signal that arrives during a call is heard when its answer is noted."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from toys import heedful, wait_for

from harness.slurm.interrupt import deferred_signals

HEARING = """
ASKED = '''
import os, time
open("asked", "w")
while not os.path.exists("go"):
    time.sleep(0.05)
open("answered", "w")
'''
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from harness.slurm.interrupt import deferred_signals
for word in sys.argv[2].split():
    signal.signal(getattr(signal, word), signal.SIG_IGN)
folder = Path(sys.argv[1])
# As the one that touches the claim does, it may be given the signal.
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
with deferred_signals():
    done = subprocess.run([sys.executable, "-c", ASKED], cwd=folder)
    (folder / "noted").write_text(str(done.returncode))
(folder / "on").touch()
"""


def called(folder, ignored=""):
    """Start a process, in a group of its own as a terminal has it, and wait until it is in the call."""
    command = [sys.executable, "-c", HEARING, str(folder), ignored]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, preexec_fn=heedful)  # noqa: PLW1509
    wait_for((folder / "asked").exists)
    return process


def disturbed(folder, *numbers, ignored=""):
    """Send signals to a process and to the command that it calls, as a terminal does; return how it ended."""
    process = called(folder, ignored)
    for number in numbers:
        os.killpg(process.pid, number)
    (folder / "go").touch()
    return process.wait(20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signal_during_a_call_is_heard_when_its_answer_is_noted(tmp_path, number):
    assert disturbed(tmp_path, number) == -number

    assert (tmp_path / "answered").exists()
    assert (tmp_path / "noted").read_text() == "0"
    assert not (tmp_path / "on").exists()


def test_signal_that_is_ignored_stays_ignored(tmp_path):
    assert disturbed(tmp_path, signal.SIGINT, signal.SIGHUP, ignored="SIGINT SIGHUP") == 0

    assert (tmp_path / "on").exists()


def test_signals_are_not_deferred_in_other_threads():
    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(_entered).result() == before


def _entered():
    with deferred_signals():
        return signal.getsignal(signal.SIGINT)
