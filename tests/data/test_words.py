"""What classes are called for people: by a folder's classes.txt, or by ImageNet's names of synsets."""

import logging

import numpy as np
import pytest
from loading import load_data
from PIL import Image

from inception_jax.data.words import read_words, shown_names

FOLDERS = ("dog", "great white", "n01440764")


def test_synsets_among_other_names_are_shown_by_their_words():
    assert shown_names(("cat", "n01440764", "n99999999")) == ("cat", "tench", "n99999999")
    assert shown_names(("tench", "n01440764")) == ("tench tench", "tench n01440764")
    assert shown_names(FOLDERS, ("a", "b", "c")) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dog Hund\nn01440764\tSchleie, Fisch\ngreat white  weißer\tHai\n", ("Hund", "weißer Hai", "Schleie, Fisch")),
        ("\ufeffdog Hund\r\n\r\nwolf Wolf\r\n", ("Hund", "great white", "tench")),  # others have the names they had
        ("Hund\nweißer Hai\nSchleie", ("Hund", "weißer Hai", "Schleie")),
        ("dog\nHai\nSchleie", ("dog", "Hai", "Schleie")),
        ("dog Tier\ngreat white Tier\nn01440764 Fisch", ("Tier dog", "Tier great white", "Fisch")),
        ("great white\ndog\nn01440764\n", ()),  # a list of the folders
        ("", ()),
    ],
)  # fmt: skip
def test_words_of_a_file(text, words, tmp_path, caplog):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8", newline="")
    assert read_words(tmp_path, FOLDERS, FOLDERS) == words
    assert not caplog.messages


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Hund\nHai", "is not used: no line begins with the name of a class, and its 2 lines are not those of the 3"),
        (b"Hai\ndog\nSchleie", "its 3 lines are not those of the 3 classes in the order of their names"),
        ("weißer".encode("latin-1"), "is not used: it is not in UTF-8"),
    ],
)
def test_a_file_that_does_not_fit_is_not_used(content, message, tmp_path, caplog):
    (tmp_path / "classes.txt").write_bytes(content)
    assert read_words(tmp_path, FOLDERS, FOLDERS) == ()
    assert message in caplog.text


@pytest.mark.parametrize("place", ["", "train/"])
def test_the_words_of_a_folder_do_not_tell_its_classes_apart(place, tmp_path, caplog):
    for number, name in enumerate(FOLDERS * 4):
        path = tmp_path / "pictures" / f"{place}{name}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)
    options = {"directory": tmp_path, "folder": tmp_path / "pictures", "image_size": 4}
    before = load_data("image_folder", **options)
    assert before.shown_names == ("dog", "great white", "tench")
    (tmp_path / "pictures" / "classes.txt").write_text("Hund\nHai\nSchleie\n")
    caplog.set_level(logging.WARNING)
    caplog.clear()
    after = load_data("image_folder", **options)
    assert after.shown_names == ("Hund", "Hai", "Schleie")
    assert (after.class_names, after.fingerprint) == (before.class_names, before.fingerprint)
    assert load_data("image_folder", classes=("n01440764", "dog"), **options).shown_names == ("Schleie", "Hund")
    assert not caplog.messages
