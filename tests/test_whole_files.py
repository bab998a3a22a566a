"""Files that appear whole or not at all, and locks that end with their process."""

import ast
import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from inception_jax import files
from inception_jax.errors import UserError, WriteError

PACKAGE = Path(files.__file__).parent
HOLD = """
import sys, time
from pathlib import Path
from inception_jax import files
with files.held(Path(sys.argv[1]), "the run's folder", "trains"):
    print("held", flush=True)
    time.sleep(60)
"""
WRITES = ("write_text", "write_bytes", "savefig", "savez", "savez_compressed", "save_file", "open_memmap", "tofile")
MOVES = ("replace", "rename", "copy", "copyfile", "copytree", "move")
# What is not written by a library into memory first, or is not replaced as a whole.
EXCEPTIONS = {
    "files.py",  # the mechanism
    "runs/checkpoint_folders.py",  # Orbax writes them, whole or not at all; one that is set aside is renamed
    "runs/metrics_log.py: _write",  # a row of metrics.csv is appended, and cut off again when a run goes on
    "studies/runner.py: _train_one",  # what a run prints, while it prints it
    "studies/runner.py: measure",
    "weights/published.py: _download",  # into the file that `whole_file` gives it
    "downloads.py: download",
    "inspection/drawing.py: write_figure",
}


def writing_calls(tree):
    """Calls that may write a file and are not inside a `with` of whole_file, whole_files or whole_folder."""

    def walk(node, function, inside):
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.With):
            inside = inside or any("whole_f" in ast.unparse(item.context_expr) for item in node.items)
        if isinstance(node, ast.Call) and not inside:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            texts = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            opens = name == "open" and any(isinstance(text, str) and set(text) & set("wax+") for text in texts)
            moves = (name in MOVES and owner in ("os", "shutil")) or name == "rename"
            in_memory = any(ast.unparse(argument) in memory for argument in node.args)
            saves = (name in WRITES and owner not in ("", "files")) or (name == "save" and owner in ("np", "torch"))
            if opens or moves or (saves and not in_memory):
                yield function, ast.unparse(node)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function, inside)

    memory = {
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "io.BytesIO()" in ast.unparse(node.value)
        for target in (node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets)
    }
    yield from walk(tree, "", False)


def test_no_file_is_written_past_the_one_mechanism():
    found = {
        (str(path.relative_to(PACKAGE)), function, call)
        for path in PACKAGE.rglob("*.py")
        for function, call in writing_calls(ast.parse(path.read_text()))
    }
    assert {file for file, _, _ in found} >= {"files.py", "runs/metrics_log.py"}  # else nothing would be found at all
    unknown = [
        (file, function, call) for file, function, call in found if not {file, f"{file}: {function}"} & EXCEPTIONS
    ]
    assert unknown == []


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 256 kB, and a function that fills it."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")

    def fill():
        with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(1024)):  # until it is full
                pass

    yield place, fill
    subprocess.run(["umount", "--lazy", place], check=True)


def write(paths, content):
    with files.whole_files(paths) as news:
        for new in news:
            new.write_bytes(content)


def test_several_files_change_together_or_not_at_all(full_disk, tmp_path):
    disk, fill = full_disk
    first, second = disk / "a.bin", disk / "a.bin.json"
    write([first, second], b"old")
    before = sorted(disk.iterdir())
    fill()
    with pytest.raises(WriteError, match=f"cannot write {first}: No space left"):
        write([first, second], bytes(10_000))
    (disk / "filler").unlink()
    with pytest.raises(TypeError):
        write([first, second], None)
    assert sorted(disk.iterdir()) == before

    place = tmp_path / "place"
    place.write_bytes(b"old")
    (tmp_path / "place.json").mkdir()
    with pytest.raises(WriteError, match="Is a directory"):
        write([place, tmp_path / "place.json"], b"new")
    assert first.read_bytes() == second.read_bytes() == place.read_bytes() == b"old"


def test_a_link_stays_one_and_a_device_is_written_to(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    files.write_text(Path(os.devnull), "anything")
    with pytest.raises(WriteError, match="cannot write /dev/full: No space left on device"):
        files.write_text(Path("/dev/full"), "anything")
    assert Path(os.devnull).is_char_device()


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path):
    program = "import os, pathlib, sys\nfrom inception_jax import files\n"
    program += "with files.whole_files([pathlib.Path(name) for name in sys.argv[1:]]):\n    os.kill(os.getpid(), 9)"
    paths = [tmp_path / "a", tmp_path / "a.json"]
    assert subprocess.run([sys.executable, "-c", program, *paths]).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3  # two files and a lock
    with files.whole_files(paths) as news:
        for new in news:
            new.touch()
    assert sorted(tmp_path.iterdir()) == paths


# The lock of a folder


def held(folder, **options):
    return files.held(folder, "the run's folder", "trains", **options)


def test_a_second_process_is_told_who_holds_the_folder_until_that_is_killed(tmp_path):
    folder = tmp_path / "runs" / "mine"
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(UserError) as error, held(folder):
                pass
            assert str(error.value).startswith(f"another process (pid {other.pid}, host {os.uname().nodename}, since 2")
            assert str(error.value).endswith(f") trains in {folder}")
            assert "\n" not in str(error.value)
        finally:
            other.kill()
    assert (folder / ".lock").exists()  # and says nothing any more
    with held(folder):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
        (folder / "config.json").touch()
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_nothing_is_left_of_a_folder_in_which_nothing_was_written(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "runs" / "mine"):
        raise ZeroDivisionError
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff\xff", b'{"pid":1,"host":"\\u001b[2J","since":2}']
)
def test_a_lock_whose_text_says_nothing_holds_too(tmp_path, content):
    with held(tmp_path):
        (tmp_path / ".lock").write_bytes(content)
        with pytest.raises(UserError, match=f"another process.* trains in {tmp_path}") as error, held(tmp_path):
            pass
        assert str(error.value).isprintable()


@contextlib.contextmanager
def held_for_a_moment(folder):
    """Another thread holds the folder, and lets go by itself; its thread, and the event that says so."""
    entered, leave = threading.Event(), threading.Event()

    def other():
        with held(folder):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(30)
    threading.Timer(0.3, leave.set).start()
    yield thread, leave
    thread.join()


def test_waiting_goes_on_where_the_other_ended_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    with held_for_a_moment(tmp_path) as (_, leave), held(tmp_path, wait=True):
        assert leave.is_set()
        assert f"trains in {tmp_path}: waiting for it to end" in caplog.text


def test_a_folder_that_the_other_one_removes_is_made_again(tmp_path):
    folder = tmp_path / "run"
    with held_for_a_moment(folder) as (thread, _), held(folder, wait=True):
        thread.join()
        assert (folder / ".lock").exists()


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, caplog):
    def refuse(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with held(tmp_path), held(tmp_path), files.whole_folder(tmp_path / "data") as new:
        (new / "file").touch()
    assert caplog.text.count(f"the file system of {tmp_path} has no locks (No locks available)") == 1
    assert (tmp_path / "data" / "file").exists()


@pytest.mark.parametrize("late", [0, 0.5])
def test_a_forked_process_does_not_hold_the_folder_on(tmp_path, late):
    """As a pool of workers that outlives its parent, which was killed, maybe before they began: `late` seconds."""
    fork = "    child = os.fork()\n    if not child:\n        time.sleep(60)\n    print(child, flush=True)\n"
    late_start = f"import os\nimport time\nos.register_at_fork(after_in_child=lambda: time.sleep({late}))\n"
    program = late_start + HOLD.replace('    print("held", flush=True)\n', fork)
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        try:
            with held(tmp_path):
                os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_lock_does_not_follow_links_nor_wait_for_a_pipe(tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "linked" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="cannot write the run's folder"), held(tmp_path / "linked"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / ".lock")
    with pytest.raises(UserError, match="cannot write the run's folder"), held(tmp_path / "piped"):
        pass
