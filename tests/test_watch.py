"""Threads that end a process whose main thread does not come back, in processes of their own, without JAX."""

import signal
import subprocess
import sys
import time

import pytest

from inception_jax import process

# A mutex that its owner locks again: signals do not wake who waits for it, and Python's handlers never run.
HANG = """
import ctypes, os, signal, sys, threading, time
from inception_jax import process
from inception_jax.distributed import watch

def hang():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    print("hangs", flush=True)
    while True:
        libc.pthread_mutex_lock(mutex)

watch.STARTING_SECONDS, watch.STOP_SECONDS, watch.BEAT_SECONDS = 0.2, 1.0, 0.1
"""


def run(script, number=None):
    """(exit code, standard error) of a process, which gets a signal once it hangs."""
    command = [sys.executable, "-c", HANG + script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            if number:
                assert running.stdout.readline() == "hangs\n"
                time.sleep(0.2)
                running.send_signal(number)
            errors = running.communicate(timeout=60)[1]
        finally:
            running.kill()
    return running.returncode, errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_wait_outside_python_answers_signals(number, code):
    script = """
with process.terminable():
    signals = watch.Signals(several=True)
    with watch.waiting("the others"):
        hang()
"""
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    got, errors = run(script, number)
    assert got == code
    assert errors.startswith(f"stopped by {name} after waiting for the others for ")
    assert "training had not started, there was nothing to save" in errors


def test_a_wait_while_training_is_given_time_for_the_step_to_end():
    script = """
signals = watch.Signals(several=True)
signal.signal(signal.SIGTERM, lambda *_: None)  # as training does, which answers between two steps
watch.moved()
started = time.monotonic()
with watch.waiting("step 7"):
    signal.raise_signal(signal.SIGTERM)
    time.sleep(0.6)
with watch.waiting("step 8"):
    time.sleep(0.6)
print(f"two short waits do not end it: {time.monotonic() - started}", file=sys.stderr, flush=True)
with watch.waiting("step 9"):
    hang()
"""
    code, errors = run(script)
    assert code == 75
    assert "two short waits do not end it" in errors
    assert "after waiting for step 9 for" in errors
    assert "the last checkpoint is kept" in errors


def test_where_nothing_moves_the_stacks_are_shown():
    script = """
with watch.progress(0.01):
    time.sleep(1.5)  # before the first step
    for _ in range(5):
        watch.moved()
        time.sleep(0.3)
    print("goes on as long as it moves", file=sys.stderr, flush=True)
    hang()
"""
    code, errors = run(script)
    assert code == process.LOST
    assert "goes on as long as it moves" in errors
    assert "in hang" in errors
    assert "no step completed and no batch evaluated for 0.01 minutes" in errors


def test_neither_a_suspended_process_nor_one_without_a_limit_is_ended():
    script = """
with watch.progress(0.05):
    watch.moved()
    time.sleep(0.5)
    watch.moved()
    if not os.fork():
        time.sleep(6)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1)
with watch.progress(0):
    watch.moved()
    time.sleep(0.5)
"""
    assert run(script)[0] == 0


PEERS = """
class Store(dict):
    def key_value_set(self, key, value, allow_overwrite=False):
        self[key] = value

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.items() if key.startswith(prefix)]

store = Store()
watch.SILENT_SECONDS = 1.0
"""


@pytest.mark.parametrize(("told", "code"), [(75, 75), (130, 130), (2, 2), (4, 4), (1, 5)])
def test_the_others_end_with_the_code_of_who_ends(told, code):
    script = f"""
peers = watch.Peers(store, 0, 2)
other = watch.Peers(store, 1, 2)
other.hosts[1] = "elsewhere"
other.tell("for a reason\\x1b[2J", {told})
hang()
"""
    got, errors = run(PEERS + script)
    assert got == code
    assert "process 0 of 2 ends: process 1 on elsewhere ended: for a reason\\x1b[2J" in errors
    assert ("Start all processes again" in errors) == (code in (5, 75, 130))


def test_who_is_silent_is_named():
    got, errors = run(PEERS + "peers = watch.Peers(store, 0, 2)\nhang()")
    assert got == process.LOST
    assert "no heartbeat from process 1 for 1.0 s: it has died" in errors


def test_threads_that_do_not_end_do_not_keep_a_program_alive():
    script = """
process.LEAVE_SECONDS = 0.5
threading.Thread(target=hang).start()
process.leave(3)
"""
    assert run(script)[0] == 3
