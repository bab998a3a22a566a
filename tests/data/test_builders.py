"""The builders against their sources, read independently, and what they say to archives that are not right."""

import gzip
import hashlib
import http.server
import importlib
import io
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from loading import load_data
from PIL import Image
from small_archives import write_cifar10
from tensorflow_datasets.core.registered import skip_registration

from inception_jax import data
from inception_jax.data import archives, registry
from inception_jax.data.archives import Content
from inception_jax.data.builders import cifar10, cifar100, fashion_mnist, mnist
from inception_jax.errors import UserError


def read_split(folder, split):
    """Images and labels that TFDS itself reads from a prepared folder, in its order."""
    source = tfds.builder_from_directory(folder).as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    images = np.stack([np.asarray(Image.open(io.BytesIO(example["image"]))) for example in source])
    return images, np.array([example["label"] for example in source])


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    published = load_digits()
    # Each image's number among those of its own class.
    rank = np.array([(published.target[:index] == label).sum() for index, label in enumerate(published.target)])
    test = rank % 5 == 4
    for split, rows in (("train", ~test), ("test", test)):
        images, labels = read_split(digits / "digits" / "1.0.0", split)
        np.testing.assert_array_equal(labels, published.target[rows])
        assert images.dtype == np.uint8
        # 0..16 on 256 levels: at most half a level off, and the ends are black and white.
        np.testing.assert_allclose(images / 255, published.images[rows] / 16, rtol=0, atol=0.5 / 255 + 1e-12)
        assert (images.min(), images.max()) == (0, 255)
        assert (images[published.images[rows] == 8] == 128).all()


def test_digits_read_by_tfds_equal_the_decoded_arrays(digits):
    dataset = load_data("digits", directory=digits, splits={"train": "train", "test": "test"})
    for split in ("train", "test"):
        images, labels = read_split(digits / "digits" / "1.0.0", split)
        decoded = dataset.splits[split].gather(np.arange(len(labels)))
        np.testing.assert_array_equal(decoded[0], images[..., None])
        np.testing.assert_array_equal(decoded[1], labels)


@pytest.mark.slow
def test_mnist_equals_its_files(originals, prepared):
    data.prepare("mnist", archives=originals)
    dataset = load_data("mnist", splits={"train": "train", "test": "test"})
    assert dataset.image_shape == (28, 28, 1)
    assert dataset.class_names == tuple("0123456789")
    for split, prefix, count in (("train", "train", 60_000), ("test", "t10k", 10_000)):
        with gzip.open(originals / "mnist" / f"{prefix}-images-idx3-ubyte.gz") as file:
            assert struct.unpack(">4i", file.read(16)) == (2051, count, 28, 28)
            pixels = np.frombuffer(file.read(), np.uint8).reshape(count, 28, 28, 1)
        with gzip.open(originals / "mnist" / f"{prefix}-labels-idx1-ubyte.gz") as file:
            assert struct.unpack(">2i", file.read(8)) == (2049, count)
            classes = np.frombuffer(file.read(), np.uint8)
        images, labels = dataset.splits[split].gather(np.arange(count))
        np.testing.assert_array_equal(images, pixels)
        np.testing.assert_array_equal(labels, classes)


@pytest.mark.slow
@pytest.mark.first
def test_cifar10_equals_its_files(originals, prepared):
    data.prepare("cifar10", archives=originals)
    dataset = load_data("cifar10", splits={"train": "train", "test": "test"})
    assert dataset.image_shape == (32, 32, 3)
    assert dataset.class_names[3] == "cat"
    folder = originals / "cifar-10-batches-bin"
    for split, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        records = np.concatenate([np.fromfile(folder / f"{name}.bin", np.uint8) for name in names]).reshape(-1, 3073)
        images, labels = dataset.splits[split].gather(np.arange(len(records)))
        np.testing.assert_array_equal(labels, records[:, 0])
        for channel in range(3):
            plane = records[:, 1 + 1024 * channel : 1 + 1024 * (channel + 1)]
            np.testing.assert_array_equal(images[..., channel].reshape(-1, 1024), plane)
    names = (folder / "batches.meta.txt").read_text().split()
    assert dataset.class_names == tuple(names)


# Small archives of the published layout; the builders are told that these are what was published.


def write_idx(folder, digest, first=0):
    """Writes four gzip'ed files with 6 and 4 images, whose labels go up from `first`, and says what they hold."""
    folder.mkdir()
    contents = {}
    for name in mnist.FILES:
        count = 6 if name.startswith("train") else 4
        if "images" in name:
            payload = struct.pack(">4i", 2051, count, 28, 28) + (np.arange(count * 784) % 251).astype("u1").tobytes()
        else:
            payload = struct.pack(">2i", 2049, count) + bytes(range(first, first + count))
        contents[name] = Content(len(payload), digest(payload).hexdigest())
        (folder / f"{name}.gz").write_bytes(gzip.compress(payload))
    return contents


@pytest.fixture
def small_mnist(monkeypatch, tmp_path):
    """A folder with an MNIST of 6 and 4 images, the numbers 0, 1, ... being its pixels."""
    folder = tmp_path / "archives"
    monkeypatch.setattr(mnist, "FILES", write_idx(folder, hashlib.sha256))
    return folder


@pytest.fixture
def small_cifar10(monkeypatch, tmp_path):
    """A folder with the six files of a CIFAR-10 of 12 images."""
    return write_cifar10(tmp_path / "cifar-10-batches-bin", monkeypatch)


@pytest.fixture
def small_cifar100(monkeypatch, tmp_path):
    """A folder with the two files of a CIFAR-100 of 3 and 2 images, known by their MD5."""
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    contents = {}
    for name, labels in (("train.bin", [(19, 99), (0, 4), (11, 19)]), ("test.bin", [(4, 0), (14, 98)])):
        pixels = (np.arange(3072) % 253).astype("u1").tobytes()
        payload = b"".join(bytes(pair) + pixels for pair in labels)
        contents[name] = Content(len(payload), hashlib.md5(payload).hexdigest())
        (folder / name).write_bytes(payload)
    monkeypatch.setattr(cifar100, "FILES", contents)
    return folder


def prepared_labels(name, tmp_path, folder, split="train"):
    data.prepare(name, directory=tmp_path / "data", archives=folder)
    return load_data(name, directory=tmp_path / "data", splits={split: split}).splits[split].labels.tolist()


@pytest.mark.parametrize("layout", ["as published", "one level down", "unpacked", "unpacked, dotted", "packed again"])
def test_mnist_is_found_in_any_layout(layout, small_mnist, tmp_path):
    for path in list(small_mnist.iterdir()):
        content = gzip.decompress(path.read_bytes())
        if layout == "one level down":
            (small_mnist / "mnist").mkdir(exist_ok=True)
            path.rename(small_mnist / "mnist" / path.name)
        elif layout.startswith("unpacked"):
            name = path.stem.replace("-idx", ".idx") if "dotted" in layout else path.stem
            (small_mnist / name).write_bytes(content)
            path.unlink()
        elif layout == "packed again":
            path.write_bytes(gzip.compress(content, compresslevel=1, mtime=1))
    assert prepared_labels("mnist", tmp_path, small_mnist) == list(range(6))
    assert prepared_labels("mnist", tmp_path, None, "test") == list(range(4))  # and is not looked for again


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(content))


def lengthen(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\0"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is damaged"),
        (flip, "is not the published file: the SHA-256"),
        (lengthen, "bytes unpacked, not the published 3152"),
        (lambda path: path.unlink(), "no t10k-images-idx3-ubyte.gz or .* in .*--archives"),
        (lambda path: path.write_bytes(b""), "holds 0 bytes unpacked, not the published 3152"),
        (lambda path: path.write_bytes(b"\x1f\x8bnonsense"), "is damaged"),
    ],
    ids=["truncated", "flipped", "lengthened", "missing", "empty", "nonsense"],
)
def test_a_damaged_or_missing_archive_is_named_and_nothing_is_left(damage, message, small_mnist, tmp_path):
    damage(small_mnist / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match=message) as raised:
        data.prepare("mnist", directory=tmp_path / "data", archives=small_mnist)
    assert "t10k-images-idx3-ubyte" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "data" / "mnist").glob("*"))


def test_files_of_one_name_are_told_apart_by_what_they_hold(tmp_path, monkeypatch):
    folder = tmp_path / "all"
    folder.mkdir()
    monkeypatch.setattr(fashion_mnist, "FILES", write_idx(folder / "fashion", hashlib.md5, first=4))
    monkeypatch.setattr(mnist, "FILES", write_idx(folder / "mnist", hashlib.sha256))
    assert prepared_labels("mnist", tmp_path, folder) == [0, 1, 2, 3, 4, 5]
    assert prepared_labels("fashion_mnist", tmp_path, folder) == [4, 5, 6, 7, 8, 9]
    dataset = load_data("fashion_mnist", directory=tmp_path / "data", splits={"test": "test"})
    assert [dataset.class_names[label] for label in (0, 9)] == ["T-shirt/top", "Ankle boot"]
    assert dataset.image_shape == (28, 28, 1)
    flip(folder / "fashion" / "train-labels-idx1-ubyte.gz")
    with pytest.raises(UserError, match=r"fashion.* is not the published file: the MD5 .*mnist.* is not the published"):
        data.prepare("fashion_mnist", directory=tmp_path / "fresh", archives=folder)


@pytest.mark.parametrize("packed", [False, True])
def test_cifar100_has_fine_labels_and_coarse_ones(packed, small_cifar100, tmp_path):
    if packed:
        (tmp_path / "archives").mkdir()
        pack(small_cifar100, tmp_path / "archives" / "cifar-100-binary.tar.gz", "cifar-100-binary/")
    archives = tmp_path / "archives" if packed else tmp_path
    folder = data.prepare("cifar100", directory=tmp_path / "data", archives=archives)
    dataset = load_data("cifar100", directory=tmp_path / "data", splits={"train": "train", "test": "test"})
    names = [dataset.class_names[label] for label in dataset.splits["train"].labels]
    assert names == ["worm", "beaver", "cattle"]
    assert dataset.splits["test"].labels.tolist() == [0, 98]
    images, _ = dataset.splits["test"].gather(np.arange(2))
    np.testing.assert_array_equal(images[1].transpose(2, 0, 1).ravel(), np.arange(3072) % 253)
    builder = tfds.builder_from_directory(folder)
    coarse = builder.info.features["coarse_label"]
    source = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    assert [coarse.int2str(example["coarse_label"]) for example in source] == [
        "vehicles_2",
        "aquatic_mammals",
        "large_omnivores_and_herbivores",
    ]


def test_cifar10_is_found_unpacked(small_cifar10, tmp_path):
    assert prepared_labels("cifar10", tmp_path, small_cifar10) == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert prepared_labels("cifar10", tmp_path, None, "test") == [5, 4]


def pack(folder, path, prefix="cifar-10-batches-bin/", mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, prefix + file.name)


@pytest.mark.parametrize("prefix", ["cifar-10-batches-bin/", "", "../../outside/", "/"])
def test_cifar10_is_read_from_its_archive_without_unpacking_it(prefix, small_cifar10, tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    pack(small_cifar10, folder / "cifar-10-binary.tar.gz", prefix)
    shutil.rmtree(small_cifar10)
    assert prepared_labels("cifar10", tmp_path, folder) == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert not list(tmp_path.rglob("*.bin"))
    assert not list(tmp_path.parent.parent.glob("outside"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_archive_are_not_followed(kind, small_cifar10, tmp_path):
    folder, outside = tmp_path / "archives", tmp_path / "outside.bin"
    folder.mkdir()
    (small_cifar10 / "data_batch_3.bin").rename(outside)
    pack(small_cifar10, folder / "cifar-10-binary.tar", mode="w")
    with tarfile.open(folder / "cifar-10-binary.tar", "a") as archive:
        member = tarfile.TarInfo(str(small_cifar10 / "data_batch_3.bin"))
        member.type, member.linkname = kind, str(outside)
        archive.addfile(member)
    (folder / "cifar-10-binary.tar").rename(folder / "cifar-10-binary.tar.gz")
    with pytest.raises(UserError, match=r"lacks data_batch_3\.bin"):
        data.prepare("cifar10", directory=tmp_path / "data", archives=folder)
    assert not (small_cifar10 / "data_batch_3.bin").exists()


def test_cifar10_archives_that_are_not_whole(small_cifar10, tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    archive = folder / "cifar-10-binary.tar.gz"

    def refused(match):
        with pytest.raises(UserError, match=match):
            data.prepare("cifar10", directory=tmp_path / "data", archives=folder)

    (folder / "something_else").touch()
    refused("no cifar-10-binary.tar.gz or data_batch_1.bin in")
    pack(small_cifar10, archive)
    archive.write_bytes(archive.read_bytes()[:500])
    refused("cifar-10-binary.tar.gz is damaged")
    archive.write_bytes(b"no archive at all")
    refused("cifar-10-binary.tar.gz is damaged")
    (small_cifar10 / "data_batch_3.bin").write_bytes(bytes(6146))
    pack(small_cifar10, archive)
    refused("data_batch_3.bin in .*cifar-10-binary.tar.gz is not the published file")
    (small_cifar10 / "data_batch_3.bin").unlink()
    pack(small_cifar10, archive)
    refused("lacks data_batch_3.bin")
    archive.unlink()
    small_cifar10.rename(folder / "cifar-10-batches-bin")
    refused("no data_batch_3.bin in")


@pytest.mark.parametrize("folder", ["missing", "empty", "file"])
def test_archives_that_are_no_folder_with_files(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"archives='.*{folder}' is not a directory with files in it"):
        data.prepare("mnist", directory=tmp_path / "data", archives=tmp_path / folder)


@pytest.fixture
def no_proxy(monkeypatch):
    for variable in ("http_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "uc_merced"])
def test_without_a_network_the_answer_is_quick_and_says_what_to_do(name, tmp_path, monkeypatch, no_proxy):
    module = importlib.import_module(f"inception_jax.data.builders.{name}")
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9/")  # where nothing answers
    with pytest.raises(UserError, match=r"cannot download http.*--archives \(inception-jax data\) or --config\.data\."):
        data.prepare(name, directory=tmp_path)


@pytest.fixture
def server(tmp_path):
    """The address of a server on this machine, and the folder that it serves."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()
        thread.join()


def test_downloads_are_read_as_archives_are(server, small_mnist, small_cifar10, tmp_path, monkeypatch, no_proxy):
    address, folder = server
    monkeypatch.setattr(mnist, "URL", address)
    monkeypatch.setattr(cifar10, "URL", f"{address}cifar-10-binary.tar.gz")
    with pytest.raises(UserError, match=r"cannot download http.*File not found.*--archives"):
        data.prepare("mnist", directory=tmp_path / "data")
    for path in small_mnist.iterdir():
        shutil.copy(path, folder)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"the download failed \(.*404.*\); try again, or .*--archives") as raised:
        data.prepare("mnist", directory=tmp_path / "data")
    assert "\n" not in str(raised.value)
    shutil.copy(small_mnist / "train-labels-idx1-ubyte.gz", folder)
    assert prepared_labels("mnist", tmp_path, None) == list(range(6))
    pack(small_cifar10, folder / "cifar-10-binary.tar.gz")
    assert prepared_labels("cifar10", tmp_path, None, "test") == [5, 4]


def test_a_download_is_bounded(server, small_mnist, tmp_path, monkeypatch, no_proxy):
    address, folder = server
    monkeypatch.setattr(mnist, "URL", address)
    monkeypatch.setattr(archives, "MOST_BYTES", 100)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", None)  # which has no bounds
    for path in small_mnist.iterdir():
        shutil.copy(path, folder)
    with pytest.raises(UserError, match="is larger than 100 bytes, the most that is allowed"):
        data.prepare("mnist", directory=tmp_path / "data")
    assert not [path for path in (tmp_path / "data").rglob("*.gz*") if path.is_file()]


def test_a_download_of_something_else_is_refused(server, small_mnist, tmp_path, monkeypatch, no_proxy):
    address, folder = server
    monkeypatch.setattr(mnist, "URL", address)
    for path in small_mnist.iterdir():
        shutil.copy(path, folder)
    flip(folder / "train-images-idx3-ubyte.gz")
    with pytest.raises(UserError, match="is not the published file"):
        data.prepare("mnist", directory=tmp_path / "data")


def test_two_processes_prepare_at_once(tmp_path):
    code = "import sys; from inception_jax import data; print(data.prepare('digits', directory=sys.argv[1]))"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [(process.returncode, error) for process, (_, error) in zip(processes, answers, strict=True)] == [
        (0, "")
    ] * 2
    folder = tmp_path / "digits" / "1.0.0"
    assert {output for output, _ in answers} == {f"{folder}\n"}
    assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]
    assert [path.name for path in (folder / "decoded").iterdir()] == ["8x8x1"]


def test_what_a_killed_preparation_left_is_never_taken_for_a_whole_one(digits, tmp_path):
    whole = digits / "digits" / "1.0.0"
    tfds_rest = tmp_path / "digits" / "incomplete.ABC123_1.0.0"
    shutil.copytree(whole, tfds_rest)
    (tfds_rest / "dataset_info.json").unlink()
    folder = data.prepare("digits", directory=tmp_path)
    shutil.rmtree(folder / "decoded")
    our_rest = folder / "decoded" / ".8x8x1.0123456789abcdef"
    shutil.copytree(whole / "decoded" / "8x8x1", our_rest)
    (our_rest / "train_labels.npy").unlink()
    dataset = load_data("digits", directory=tmp_path, splits={"train": "train"})
    expected = load_data("digits", directory=digits, splits={"train": "train"})
    np.testing.assert_array_equal(dataset.splits["train"].labels, expected.splits["train"].labels)
    np.testing.assert_array_equal(dataset.splits["train"].images, expected.splits["train"].images)


def test_no_builder_has_a_name_of_tfds():
    theirs = tfds.list_builders(with_community_datasets=False)
    for builder in filter(registry.is_builder, data.DATASETS.values()):
        assert builder.name not in theirs
        about = builder(data_dir="nowhere").info
        assert about.citation.startswith("@")
        assert about.homepage.startswith("http")
        if (name := getattr(builder, "EARLIER_NAME", None)) is not None:
            assert about.homepage == tfds.builder(name, data_dir="nowhere").info.homepage


def test_the_code_of_the_page_reads_the_digits(digits, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "data.md"
    (code,) = re.findall(r"^### With TFDS\n.*?^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(digits))
    known = {}
    exec(code, known)
    assert known["builder"].info.features["label"].names == list("0123456789")
    assert len(known["source"]) == 355


def test_tfds_own_data_set_and_ours_in_one_folder(small_mnist, tmp_path):
    with skip_registration():

        class Mnist(tfds.core.GeneratorBasedBuilder):
            """Stands in for TFDS's, with the version of ours."""

            VERSION = mnist.Mnist.VERSION
            __module__ = "tensorflow_datasets.image_classification.mnist"

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"label": np.int64}))

            def _split_generators(self, dl_manager):
                return {"train": iter([(0, {"label": 7})])}

            def _generate_examples(self):
                raise NotImplementedError

    place = tmp_path / "data"
    theirs = Mnist(data_dir=place)
    theirs.download_and_prepare(file_format="array_record")
    assert data.prepare("mnist", directory=place, archives=small_mnist) == place / "inception_jax_mnist" / "1.0.0"
    assert [example["label"] for example in theirs.as_data_source("train")] == [7]
    # As the page says.
    assert tfds.builder("mnist", data_dir=place).data_dir == str(place / "mnist" / "3.0.1")
    ours = tfds.data_source("inception_jax_mnist", data_dir=place, split="train")
    assert [example["label"] for example in ours] == [0, 1, 2, 3, 4, 5]
    assert ours[1]["image"].shape == (28, 28, 1)


def test_what_earlier_versions_prepared_is_found(small_mnist, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as earlier:
        earlier.setattr(mnist.Mnist, "name", "mnist")
        data.prepare("mnist", directory=tmp_path, archives=small_mnist)
    shutil.rmtree(small_mnist)
    caplog.clear()
    assert data.prepare("mnist", directory=tmp_path) == tmp_path / "mnist" / "1.0.0"
    assert len(load_data("mnist", directory=tmp_path).splits["test"]) == 4
    assert "preparing" not in caplog.text
    assert not (tmp_path / "inception_jax_mnist").exists()
