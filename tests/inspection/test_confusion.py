"""Confusion matrices as pictures: every class has its name, and no name lies over another."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from inception_jax.errors import UserError
from inception_jax.inspection import confusion_chart, save_confusion


def drawn(number):
    matrix = np.eye(number, dtype=int) * 90
    matrix[0, -1] = 1234
    names = [f"{label} is the class's long name, $5 to $6" for label in range(number)]
    figure = confusion_chart(matrix, names)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes, _ = figure.axes
    return canvas, axes


@pytest.mark.parametrize("number", [2, 10, 21, 200])
def test_names_can_be_read(number):
    canvas, axes = drawn(number)
    renderer = canvas.get_renderer()
    width, height = canvas.get_width_height()
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text().split()[0] for tick in ticks] == list(map(str, range(number)))
        boxes = [tick.get_window_extent(renderer) for tick in ticks]
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    assert sorted(text.get_text() for text in axes.texts) == sorted(["1,234", *["90"] * number] if number < 21 else [])


def test_of_a_thousand_classes_some_are_named():
    figure = confusion_chart(np.eye(1000, dtype=int), [f"class {label}" for label in range(1000)])
    names = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert names == [f"class {label}" for label in range(0, 1000, 4)]


def test_files(tmp_path):
    matrix = np.array([[3, 1], [0, 0]])
    for suffix in (".png", ".svg", ".csv"):
        save_confusion(matrix, ("cat", "dög"), tmp_path / f"matrix{suffix}")
    with Image.open(tmp_path / "matrix.png") as picture:
        assert min(picture.size) > 300
    assert "<svg" in (tmp_path / "matrix.svg").read_text()
    assert (tmp_path / "matrix.csv").read_text().splitlines() == ["true class,cat,dög", "cat,3,1", "dög,0,0"]
    with pytest.raises(UserError, match=r"must end in \.csv, \.png"):
        save_confusion(matrix, ("cat", "dög"), tmp_path / "matrix.doc")
    with pytest.raises(UserError, match=r"cannot write .*: No such file or directory"):
        save_confusion(matrix, ("cat", "dög"), tmp_path / "nowhere/matrix.csv")
