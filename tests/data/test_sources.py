"""What is found out about each picture, once."""

import os

import numpy as np
import pytest
from PIL import Image

from inception_jax.data import sources
from inception_jax.data.sources import FileSource

NAMES = ["a/1.png", "a/ü b.png", "b/gray.jpg", "b/half.jpg", "b/empty.png", "b/gone.png", "b/text.jpg"]


@pytest.fixture
def source(tmp_path):
    """A folder with three pictures, of which two are equal, and four files that are none."""
    root = tmp_path / "pictures"
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    Image.new("RGB", (7, 5), "red").save(root / "a" / "1.png")
    Image.new("RGB", (7, 5), "red").save(root / "a" / "ü b.png")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(root / "b" / "gray.jpg")
    content = (root / "b" / "gray.jpg").read_bytes()
    (root / "b" / "half.jpg").write_bytes(content[: len(content) - 20])
    (root / "b" / "empty.png").touch()
    (root / "b" / "text.jpg").write_text("not a picture")
    return FileSource.of(root, NAMES)


def test_facts(source, tmp_path):
    facts = sources.check(source, tmp_path / "facts.json")
    assert facts.decodable.tolist() == [True, True, True, False, False, False, False]
    assert facts.grayscale.tolist() == [False, False, True, False, False, False, False]
    assert list(zip(facts.heights, facts.widths, facts.modes, strict=True))[:3] == [
        (5, 7, "RGB"), (5, 7, "RGB"), (8, 8, "L"),
    ]  # fmt: skip
    assert facts.digests[0] == facts.digests[1] != facts.digests[2]
    assert facts.errors[4:] == ["it is empty", "No such file or directory", "it is not a picture of a known format"]
    assert facts.errors[3]


def test_a_picture_is_read_again_only_if_it_changed(source, tmp_path, monkeypatch):
    path = tmp_path / "cache" / "facts.json"
    first = sources.check(source, path)
    read = []
    monkeypatch.setattr(sources, "look", lambda content: read.append(content()) or ("new", 1, 2, "L", ""))
    assert sources.check(source, path) == first
    assert read == []
    status = (source.root / NAMES[1]).stat()
    os.utime(source.root / NAMES[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert sources.check(source, path).digests[1] == "new"
    assert read == [source.read(1)]
    more = FileSource.of(source.root, [*NAMES[2:], "a/1.png", "b/half.jpg"])
    assert sources.check(more, path).digests == [*first.digests[2:], first.digests[0], first.digests[3]]
    assert len(read) == 1


def test_a_file_that_could_not_be_read_is_tried_again(source, tmp_path, monkeypatch):
    path = tmp_path / "facts.json"
    expected = sources.check(source, tmp_path / "others.json")

    def forbid(source, row):
        (source.root / source.paths[row]).stat()
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "read", forbid)
        assert sources.check(source, path).errors.count("Permission denied") == len(NAMES) - 1
    assert sources.check(source, path) == expected  # permissions change neither the size nor the time of a file


def test_a_damaged_cache_is_made_again(source, tmp_path):
    path = tmp_path / "facts.json"
    first = sources.check(source, path)
    path.write_text(path.read_text()[:100])
    assert sources.check(source, path) == first
