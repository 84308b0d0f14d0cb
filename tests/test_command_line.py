"""How commands end."""

import signal
import subprocess
import sys
from functools import partial

import pytest

CAUGHT = """
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        pass  # as C code does with what is raised in it
"""
FINALISED = """
    class Slow:
        def __del__(self):
            print("ready", flush=True)
            time.sleep(60)
    Slow()
"""


@pytest.mark.parametrize("swallowing", [CAUGHT, FINALISED])
def test_an_interrupt_that_a_library_swallows_still_ends_the_program(swallowing: str) -> None:
    program = f"""
import time
from kvcore.command_line import clear_errors, insist_on_interrupts
with clear_errors():
    insist_on_interrupts()
{swallowing}
    time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # test runners may ignore it
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=50)
    assert process.returncode == 130
    assert stderr == "interrupted; run the same command again to complete the cell\n"
