"""Pictures that are decoded when they are read: the same batches as from memory, whoever decodes them."""

import dataclasses
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from loading import load_data
from PIL import Image

from inception_jax.data import dataset, order, streaming
from inception_jax.data.dataset import eval_batches, train_batches
from inception_jax.data.streaming import RandomCrop
from inception_jax.errors import LostError, UserError

SIDES = [(20, 30), (31, 17), (24, 24), (40, 64)]
CROP = RandomCrop(3, (0.1, 1.0), (3 / 4, 4 / 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of pictures in several sizes, formats and modes, 20 in each."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(40):
        place = root / ("cat", "dog")[number % 2]
        place.mkdir(exist_ok=True)
        image = Image.fromarray(generator.integers(0, 256, (*SIDES[number % 4], 3), np.uint8))
        if number % 5 == 0:
            image = image.convert("L")
        image.save(place / f"{number}.{('jpg', 'png')[number // 4 % 2]}")
    return root


@pytest.fixture(scope="module")
def load(folder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("prepared")
    return partial(load_data, "image_folder", directory=directory, folder=folder, image_size=16)


def positions(split, batch_size=4):
    return partial(order.batch_indices, 5, num_examples=len(split), batch_size=batch_size)


def assert_batches_equal(first, second):
    for some, others in zip(first, second, strict=True):
        for array, other in zip(some, others, strict=True):
            np.testing.assert_array_equal(array, other)
            assert array.dtype == other.dtype


@pytest.mark.parametrize(
    "options", [{}, {"channels": 1, "resize": "bicubic"}, {"fit": "crop", "crop_share": 0.8, "pad": 3}]
)
def test_streaming_equals_memory(options, load):
    memory, streamed = (load(pipeline=pipeline, **options) for pipeline in ("memory", "streaming"))
    assert memory.image_shape == streamed.image_shape
    assert memory.class_names == streamed.class_names == ("cat", "dog")
    np.testing.assert_array_equal(memory.channel_statistics(), streamed.channel_statistics())
    assert set(memory.splits) == {"train", "validation", "test"}
    for name, split in memory.splits.items():
        other = streamed.splits[name]
        np.testing.assert_array_equal(split.all_labels(), other.all_labels())
        np.testing.assert_array_equal(split.grayscale(), other.grayscale())
        everything = np.arange(len(split))
        assert_batches_equal([split.gather(everything)], [other.gather(everything)])
        assert_batches_equal(eval_batches(split, 7), eval_batches(other, 7))
        assert_batches_equal(eval_batches(split, 6, slice(2, 4)), eval_batches(other, 6, slice(2, 4)))
    split, other = memory.splits["train"], streamed.splits["train"]
    assert_batches_equal(train_batches(split, positions(split), 2, 20), train_batches(other, positions(other), 2, 20))


@pytest.mark.parametrize("number", [5, 1000])
def test_statistics_of_very_many_do_not_depend_on_the_pipeline(number, load, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "STATISTICS_OF_ALL", number)
    monkeypatch.setattr(dataset, "STATISTICS_EXAMPLES", number)
    # In two folders, since they are kept.
    memory, streamed = (
        load(directory=tmp_path / pipeline, pipeline=pipeline).channel_statistics()
        for pipeline in ("memory", "streaming")
    )
    np.testing.assert_array_equal(memory, streamed)


def test_any_number_of_workers_from_any_step_gives_the_same_batches(load):
    split = load(pipeline="streaming").splits["train"]
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    for crop in (None, CROP):
        stream = partial(train_batches, split, positions(split), last=21, crop=crop, steps_per_epoch=8)
        whole = list(stream(first=0))
        assert len(whole) == 21
        for workers, first in ((1, 3), (2, 11)):
            assert_batches_equal(stream(first=first, num_workers=workers), whole[first:])
    # One that is left before its end.
    batches = train_batches(split, positions(split), 0, 1000, num_workers=2)
    assert_batches_equal([next(batches)], [next(train_batches(split, positions(split), 0, 1))])
    batches.close()
    assert (set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()) <= before


def test_a_crop_depends_on_the_epoch_and_the_picture_alone(load):
    split = load(pipeline="streaming").splits["train"]
    n = len(split)
    epochs = list(train_batches(split, partial(order.batch_indices, 5, num_examples=n, batch_size=n), 0, 2, crop=CROP))
    again = [order.permutation(5, epoch, n) for epoch in (0, 1)]
    for epoch in (0, 1):
        crop = partial(CROP.draw, epoch, again[epoch][3])
        np.testing.assert_array_equal(epochs[epoch][0][3], split.decode(again[epoch][3], crop))
    first, second = (images[np.argsort(permutation)] for (images, _), permutation in zip(epochs, again, strict=True))
    assert (first != second).any(axis=(1, 2, 3)).all()


def test_crops_are_distributed_as_torchvisions():
    pytest.importorskip("torch")
    from peers import import_torchvision

    import_torchvision()
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    for height, width, scale, ratio in (
        (375, 500, (0.08, 1.0), (3 / 4, 4 / 3)),
        (40, 400, (0.6, 1.0), (3 / 4, 4 / 3)),  # seldom fits: the central one
        (64, 64, (0.3, 0.5), (0.5, 2.0)),
    ):
        crop = RandomCrop(0, scale, ratio)
        ours = np.array([crop.draw(number // 100, number % 100, height, width) for number in range(4000)])
        image = torch.empty(3, height, width)
        theirs = np.array([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(4000)])  # top, left, h, w
        ours = np.stack([ours[:, 1], ours[:, 0], ours[:, 3] - ours[:, 1], ours[:, 2] - ours[:, 0]], 1)
        assert (ours[:, :2] >= 0).all()
        assert (ours[:, 0] + ours[:, 2] <= height).all()
        assert (ours[:, 1] + ours[:, 3] <= width).all()
        for column in range(4):
            spread = theirs[:, column].std() + 1e-9
            assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 0.08 * spread + 1e-6
            assert abs(ours[:, column].std() - theirs[:, column].std()) < 0.08 * spread + 1e-6


def test_a_picture_that_is_gone_is_left_out_wherever_it_is_met(folder, tmp_path, caplog):
    copy = tmp_path / "copy"
    for path in folder.rglob("*.*"):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        (copy / path.parent.name / path.name).write_bytes(path.read_bytes())
    load = partial(
        load_data, "image_folder", directory=tmp_path, folder=copy, image_size=16, pipeline="streaming", hold_out=0
    )
    split = load(splits={"train": "train"}).splits["train"]
    stream = partial(train_batches, split, positions(split), 0, 10)
    before = list(stream())
    gone = int(order.batch_indices(5, 2, num_examples=40, batch_size=4)[1])
    name = split.sources[0].name(int(split.rows[gone]))
    (copy / name).unlink()
    with caplog.at_level(logging.WARNING):
        after = list(stream())
    assert [message for message in caplog.messages if name in message] == [f"{name} can no longer be decoded: left out"]
    assert_batches_equal(stream(num_workers=1), after)
    following = split.decode((gone + 1) % 40)
    for step, ((images, labels), (expected, _)) in enumerate(zip(after, before, strict=True)):
        for row, position in enumerate(positions(split)(step)):
            np.testing.assert_array_equal(images[row], following if position == gone else expected[row])
            assert labels[row] == split.labels[(position + (position == gone)) % 40]
    masks = np.concatenate([mask for _, _, mask in eval_batches(split, 16)])
    assert np.flatnonzero(~masks).tolist() == [gone, *range(40, 48)]
    with pytest.raises(UserError, match=f"{name} could be decoded before"):
        split.gather(np.arange(40))
    strict = dataclasses.replace(split, leave_out=False)
    with pytest.raises(UserError, match="could be decoded before"):
        list(train_batches(strict, positions(split), 0, 10))
    with pytest.raises(UserError, match="could be decoded before"):
        list(train_batches(strict, positions(split), 0, 10, num_workers=1))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("leave_out", [True, False])
def test_a_folder_that_is_gone_is_an_error(folder, tmp_path, num_workers, leave_out):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    load = partial(load_data, "image_folder", directory=tmp_path, folder=copy, image_size=16, pipeline="streaming")
    split = dataclasses.replace(load().splits["train"], leave_out=leave_out)
    batches = train_batches(split, positions(split), 0, 1000, num_workers=num_workers)
    next(batches)
    copy.rename(tmp_path / "elsewhere")  # maybe in the middle of a batch
    with pytest.raises(UserError, match="could be decoded before, but not now: No such file or directory") as error:
        list(batches)
    if leave_out:
        assert str(error.value).endswith(". Restore them; the same command then continues")
        with pytest.raises(UserError, match="more than half of the 8 pictures"):
            list(eval_batches(split, 8))


def test_a_class_that_is_gone_is_left_out_while_most_pictures_of_a_batch_are_there(folder, tmp_path, caplog):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    load = partial(load_data, "image_folder", directory=tmp_path, folder=copy, image_size=16, pipeline="streaming")
    split = load(splits={"train": "train"}, hold_out=0).splits["train"]
    cats, dogs = (np.flatnonzero(split.labels == label) for label in (0, 1))
    shutil.rmtree(copy / "dog")
    with caplog.at_level(logging.WARNING):
        for _, labels in train_batches(split, lambda step: np.append(cats[:3], dogs[0]), 0, 2):
            np.testing.assert_array_equal(labels, [0, 0, 0, 0])
        list(train_batches(split, lambda step: dogs[:2], 0, 1))  # all of a small batch
    names = [split.sources[0].name(int(split.rows[position])) for position in dogs[:2]]
    assert set(caplog.messages) >= {f"{name} can no longer be decoded: left out" for name in names}
    with pytest.raises(UserError, match="more than half of the 4 pictures of a batch are lost: dog/"):
        list(train_batches(split, lambda step: np.append(cats[0], dogs[:3]), 0, 1))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("leave_out", [True, False])
def test_prepared_records_that_are_gone_are_an_error(digits, tmp_path, num_workers, leave_out):
    copy = tmp_path / "data"
    shutil.copytree(digits, copy)
    split = load_data("digits", directory=copy, pipeline="streaming").splits["train"]
    split = dataclasses.replace(split, leave_out=leave_out)
    shutil.rmtree(copy)
    with pytest.raises(UserError, match=r"train\[\d+\] could be decoded before, but not now"):
        list(train_batches(split, positions(split), 0, 3, num_workers=num_workers))


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_workers_that_are_killed_are_replaced(load, caplog):
    split = load(pipeline="streaming").splits["train"]
    stream = partial(train_batches, split, positions(split), crop=CROP, steps_per_epoch=8)
    whole = list(stream(0, 60))
    batches = stream(0, 60, num_workers=2)
    received = [next(batches)]
    for kills in range(1, 5):  # more than are suffered without a batch in between
        with caplog.at_level(logging.WARNING):
            kill(multiprocessing.active_children()[0])
            while len([message for message in caplog.messages if "decodes pictures died" in message]) < kills:
                received.append(next(batches))
    received.extend(batches)
    assert_batches_equal(received, whole)
    assert "too little memory or a small /dev/shm" in caplog.messages[-1]


@pytest.mark.parametrize("guarded", [False, True])
def test_a_script_without_a_main_guard_is_told_so(guarded, folder, tmp_path):
    script = """
        from inception_jax import data
        from inception_jax.data.dataset import train_batches
        import numpy as np

        {guard}
            dataset = data.load("image_folder", data.Location({directory!r}, folder={folder!r}),
                                decoding=data.Decoding(16, pipeline="streaming"))
            number = len(list(train_batches(dataset.splits["train"], np.atleast_1d, 0, 3, num_workers=2)))
            print("batches", number)
    """
    guard = 'if __name__ == "__main__":' if guarded else "if True:"
    script = script.format(guard=guard, directory=str(tmp_path / "prepared"), folder=str(folder))
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    ended = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=120)
    if guarded:
        assert (ended.returncode, ended.stdout) == (0, "batches 3\n"), ended.stderr
        return
    assert ended.stderr.count("Traceback") == 1  # the script's own, of the error
    assert ended.stderr.splitlines()[-1] == (
        "inception_jax.errors.UserError: data.num_workers=2 starts processes, which begin by running this script "
        'again: wrap what it does in `if __name__ == "__main__":`, or set data.num_workers=0'
    )
    assert "memory" not in ended.stderr


def test_workers_that_die_again_and_again_are_an_error(load, caplog):
    split = load(pipeline="streaming").splits["train"]
    with pytest.raises(
        LostError, match=r"died 3 times without a batch: too little memory .* smaller data\.num_workers"
    ):
        next(train_batches(split, os._exit, 1, 10, num_workers=1))
    assert len(caplog.messages) == 2
    assert not multiprocessing.active_children()


def test_pictures_of_one_size_are_streamed_as_they_are(digits):
    options = {"directory": digits, "splits": {"train": "train[:20]"}}
    memory = load_data("digits", **options).splits["train"]
    streamed = load_data("digits", pipeline="streaming", **options).splits["train"]
    assert isinstance(streamed, streaming.StreamingSplit)
    assert_batches_equal([memory.gather(np.arange(20))], [streamed.gather(np.arange(20))])


def test_crops_need_pictures(load):
    split = load(pipeline="memory").splits["train"]
    with pytest.raises(UserError, match="crop_originals"):
        next(train_batches(split, positions(split), 0, 1, crop=CROP))


def test_streaming_is_chosen_where_the_decoded_set_is_too_large(load, caplog):
    assert hasattr(load().splits["train"], "images")
    with caplog.at_level(logging.INFO):
        streamed = load(memory_gib=1e-9)
    assert not hasattr(streamed.splits["train"], "images")
    assert any("data.memory_gib" in message for message in caplog.messages)
    with pytest.raises(UserError, match="several sizes"):
        load(image_size=None)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_set_larger_than_the_budget_stays_below_it(tmp_path):
    """4 GB decoded, one GiB allowed: the peaks of the process and of two workers together."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "large" / name).mkdir(parents=True)
        for number in range(13_600):
            path = tmp_path / "large" / name / f"{number}.jpg"
            if number < 50:
                Image.fromarray(generator.integers(0, 256, (28, 28, 3), np.uint8)).resize((224, 224)).save(path)
            else:
                os.link(path.with_name(f"{number % 50}.jpg"), path)
    script = tmp_path / "large.py"
    script.write_text(
        textwrap.dedent(f"""
        import re, resource
        from functools import partial
        from pathlib import Path
        from inception_jax import data
        from inception_jax.data import order, streaming
        from inception_jax.data.dataset import train_batches

        if __name__ == "__main__":
            location = data.Location({str(tmp_path)!r}, folder={str(tmp_path / "large")!r})
            selection = data.Selection(hold_out=0, splits={{"train": "train"}})
            decoding = data.Decoding(224, memory_gib=1.0)
            split = data.load("image_folder", location, selection, decoding).splits["train"]
            assert isinstance(split, streaming.StreamingSplit)
            positions = partial(order.batch_indices, 0, num_examples=len(split), batch_size=64)
            for workers in (0, 2):
                for _ in train_batches(split, positions, 0, 100, num_workers=workers):
                    pass
            # Its own: what getrusage says begins with the peak of the program that started this one.
            mine = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
            workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest one
            print(len(split), mine + 2 * workers)
        """)
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, check=True, cwd=root, timeout=240)
    examples, kibibytes = map(int, result.stdout.split())
    assert examples * 224 * 224 * 3 > 4e9
    assert kibibytes < 2**20


def runs(pid: int) -> bool:
    """Whether a process is there and not only waits to be taken note of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no /dev/shm")
def test_nothing_is_left_of_a_process_that_is_killed(load, folder, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing, sys, time
        from functools import partial
        from inception_jax import data
        from inception_jax.data import order, streaming
        from inception_jax.data.dataset import train_batches

        if __name__ == "__main__":
            location = data.Location({str(tmp_path)!r}, folder={str(folder)!r})
            decoding = data.Decoding(16, pipeline="streaming")
            split = data.load("image_folder", location, decoding=decoding).splits["train"]
            order_of = partial(order.batch_indices, 5, num_examples=len(split), batch_size=4)
            batches = train_batches(split, order_of, 0, 100_000, num_workers=2)
            next(batches)
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            time.sleep(60)
        """)
    )
    before = set(os.listdir("/dev/shm"))
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.send_signal(signal.SIGKILL)
    limit = time.monotonic() + 20
    while time.monotonic() < limit and (any(map(runs, workers)) or not set(os.listdir("/dev/shm")) <= before):
        time.sleep(0.1)
    assert not any(map(runs, workers))
    assert set(os.listdir("/dev/shm")) <= before
