"""Ctrl-C in a real process: the first is noted, the second ends the process, wherever it is stuck."""

import signal
import subprocess
import sys

import pytest
from toyrun import environment

STUCK = """
import ctypes, os, sys
from frisket.engine import signals
with signals.held():
    print("ready", flush=True)
    if sys.argv[1] == "ask":
        while not signals.asked(): pass
        print("asked", signals.interrupted(), flush=True)
    ctypes.CDLL(None).pause()  # in C: no Python handler runs in this thread
"""


@pytest.mark.parametrize("stuck", ["ask", "from the start"])
def test_the_second_ctrl_c_ends_a_process_that_is_stuck(stuck):
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, stuck],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout and process.stderr
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            if stuck == "ask":
                assert process.stdout.readline() == "asked True\n"
            process.stderr.readline()
            assert "stopping after this step, with what is done kept; Ctrl-C again" in process.stderr.readline()
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130  # pytest-timeout says when this is never
            assert "ended at once" in process.stderr.read()
        finally:
            process.kill()
