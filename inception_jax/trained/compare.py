"""Compares two trained networks on the same pictures: their accuracy, and the similarity of their layers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.stats
from jax import numpy as jnp
from matplotlib.figure import Figure

from inception_jax.data.dataset import Dataset
from inception_jax.errors import UserError
from inception_jax.inspection import activations, drawing
from inception_jax.runs.run import Run
from inception_jax.text import chart_label, printable, times
from inception_jax.trained import evaluate
from inception_jax.trained.evaluate import Predictions

CONFIDENCE = 0.95
BATCH = 64  # images per batch when comparing layers: VGG at 224 pixels takes 4 GB
FEWEST = 4  # minimum number of images for the estimate


@dataclasses.dataclass(frozen=True)
class Pairing:
    """How many of the same examples each of two networks classifies correctly.

    Attributes:
      agreeing: examples for which both predict the same class, right or wrong.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    agreeing: int

    @property
    def count(self) -> int:
        """The number of all examples."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """The second network's accuracy minus the first's."""
        return (self.only_second - self.only_first) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the difference of paired proportions (Bonett and Price 2012, adjusted Wald)."""
        number = self.count + 2
        first, second = (self.only_first + 1) / number, (self.only_second + 1) / number
        middle = second - first
        half = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((first + second - middle**2) / number)
        return max(-1.0, middle - half), min(1.0, middle + half)

    @property
    def p_value(self) -> float:
        """McNemar's exact test: the probability of a split at least this uneven if both are equally accurate."""
        odd = self.only_first + self.only_second
        return float(scipy.stats.binomtest(self.only_first, odd).pvalue) if odd else 1.0


@dataclasses.dataclass(frozen=True)
class ClassPair:
    """The accuracies of two networks on the examples of a class."""

    name: str
    first: float
    second: float
    count: int

    @property
    def difference(self) -> float:
        """The second accuracy minus the first."""
        return self.second - self.first


@dataclasses.dataclass(frozen=True, repr=False)
class Similarity:
    """The similarity of the layer outputs of two networks, which notebooks display as `similarity_chart`.

    Attributes:
      cka: linear CKA `(first layers, second layers)`: 1 for outputs equal up to rotation, scale and shift, about 0
        for unrelated ones; NaN where a layer's output is the same for all images.
      images: the number of images.
    """

    first_layers: tuple[str, ...]
    second_layers: tuple[str, ...]
    cka: np.ndarray
    images: int

    @property
    def namesakes(self) -> dict[str, float]:
        """CKA of the layers that both networks have, by name."""
        columns = {name: column for column, name in enumerate(self.second_layers)}
        return {
            name: float(self.cka[row, columns[name]]) for row, name in enumerate(self.first_layers) if name in columns
        }

    def __repr__(self) -> str:
        return f"Similarity(CKA of {times(self.cka.shape)} layers on {self.images} images)"

    def _repr_png_(self) -> bytes:
        return drawing.png(similarity_chart(self, "the first's layers", "the second's layers"))


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Two networks compared on a split.

    Attributes:
      data: the data set's name.
      classes: those that both have and that occur in the data, in the first's order.
      similarity: None if not requested.
    """

    data: str
    split: str
    pairing: Pairing
    classes: tuple[ClassPair, ...]
    similarity: Similarity | None

    def __repr__(self) -> str:
        low, high = self.pairing.interval
        layers = f", CKA of {' x '.join(map(str, self.similarity.cka.shape))} layers" if self.similarity else ""
        return printable(
            f"Comparison({self.data}, {self.split}: second minus first {100 * self.pairing.difference:+.2f} points "
            f"({100 * low:+.2f} to {100 * high:+.2f}), {self.pairing.count:,} examples, {len(self.classes)} classes"
            f"{layers})"
        )


def compare_runs(
    first: Run,
    second: Run,
    split: str | None = None,
    fields: Mapping[str, Any] | None = None,
    *,
    class_map: Mapping[str, str] | None = None,
    batch_size: int = 128,
    images: int = 512,
    layers: str | Sequence[str] | None = None,
) -> Comparison:
    """Compares two runs on the same pictures, each at its own input size.

    Args:
      split: None: test, or validation if there is no test split, see `evaluate.load_split`.
      fields: fields of `config.data`, e.g. {"name": "cifar10"}, for other data than the first run's own.
      class_map: the runs' class names keyed by the data's, see `classes.match_classes`.
      images: number of images for comparing layers, spread evenly over the split; 0: layers are not compared.
      layers: see `inspection.activations`; None: all of each network's own submodules.

    Raises:
      UserError: the networks share no class that occurs in the data; or as `evaluate.load_for` and `activations`.
    """
    if images and images < FEWEST:
        raise UserError(f"images={images} is not allowed: it must be 0 or at least {FEWEST}")
    source = dict(fields or {})
    datasets, said = [], []
    for run in (first, second):
        # The second is given the first's pictures, whatever it was trained on.
        named = run is first or {"name", "folder"} & source.keys()
        own = source if named else evaluate.own_source_fields(first) | source
        split, dataset = evaluate.load_split(run, split, own)
        datasets.append(dataset)
        said.append(evaluate.predictions(run, dataset, split, class_map=class_map, batch_size=batch_size))
    pairing, classes = pair(said[0], said[1], first.class_names, second.class_names)
    similarity = None
    if images:
        similarity = compare_layers(first, second, datasets[0], datasets[1], split, images, layers)
    return Comparison(datasets[0].name, split, pairing, classes, similarity)


def pair(
    first: Predictions, second: Predictions, first_classes: Sequence[str], second_classes: Sequence[str]
) -> tuple[Pairing, tuple[ClassPair, ...]]:
    """Counts correct predictions, in total and by class, on the examples whose class both networks know.

    Args:
      first: predictions for the same examples in the same order as `second`.
      first_classes: class names in the order of the logits.

    Raises:
      UserError: the numbers of examples differ, or there is no example whose class both know.
    """
    if len(first.labels) != len(second.labels):
        raise UserError(f"the examples differ: got {len(first.labels)} and {len(second.labels)}")
    counted = first.decoded & second.decoded & (first.labels >= 0) & (second.labels >= 0)
    if not counted.any():
        raise UserError("no example has a class that both networks have")
    labels = first.labels[counted]
    predicted = [np.asarray(found.logits)[counted].argmax(axis=1) for found in (first, second)]
    right = [predicted[0] == labels, predicted[1] == second.labels[counted]]
    # The second's class indices as the first's: every counted example has a label in both.
    same = tuple(first_classes) == tuple(second_classes)
    translated = np.arange(len(second_classes)) if same else np.full(len(second_classes), -1)
    translated[second.labels[counted]] = labels
    pairing = Pairing(
        both=int((right[0] & right[1]).sum()),
        only_first=int((right[0] & ~right[1]).sum()),
        only_second=int((~right[0] & right[1]).sum()),
        neither=int((~right[0] & ~right[1]).sum()),
        agreeing=int((predicted[0] == translated[predicted[1]]).sum()),
    )
    classes = []
    for label in np.unique(labels):
        own = labels == label
        first_share, second_share = (float(found[own].mean()) for found in right)
        classes.append(ClassPair(first_classes[int(label)], first_share, second_share, int(own.sum())))
    return pairing, tuple(classes)


def compare_layers(
    first: Run,
    second: Run,
    first_data: Dataset,
    second_data: Dataset,
    split: str,
    images: int = 512,
    layers: str | Sequence[str] | None = None,
) -> Similarity:
    """Linear CKA between every layer of one network and every layer of another, on the same examples.

    Kornblith et al. 2019, section 3, with the unbiased HSIC estimate, averaged over minibatches, of Nguyen et al.
    2021, equations 2 and 3: memory is that of one batch, and the value does not grow with the number of units.

    Args:
      first_data: the examples as the first network's input, in the same order as `second_data`.
      images: maximum number of images, spread evenly over the split.

    Raises:
      UserError: a network has no such layer, or there are fewer than four images.
    """
    number = min(images, len(first_data.splits[split]))
    if number < FEWEST:
        raise UserError(f"split {split!r} has {number} images, but at least {FEWEST} are needed to compare layers")
    chosen = np.linspace(0, len(first_data.splits[split]) - 1, number).round().astype(np.int64)
    # Shuffled, since data may be sorted by class, and each batch should contain all classes.
    chosen = np.random.default_rng(0).permutation(chosen)
    names: list[tuple[str, ...]] = []
    crossed: Any = 0.0
    first_own: Any = 0.0
    second_own: Any = 0.0
    for positions in np.array_split(chosen, math.ceil(number / BATCH)):
        names, kernels = [], []
        for run, data in ((first, first_data), (second, second_data)):
            inputs = run.normalize(data.splits[split].gather(positions)[0])
            outputs = activations(run.model, run.variables, inputs, layers)
            names.append(tuple(outputs))
            kernels.append(_centered(np.stack([np.asarray(_gram(output), np.float64) for output in outputs.values()])))
        crossed = crossed + np.einsum("iab,jab->ij", *kernels)
        first_own, second_own = (
            total + np.einsum("iab,iab->i", kernel, kernel)
            for total, kernel in zip((first_own, second_own), kernels, strict=True)
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        cka = crossed / np.sqrt(first_own[:, None] * second_own)
    return Similarity(names[0], names[1], np.where(np.isfinite(cka), cka, np.nan), number)


@jax.jit
def _gram(outputs: jax.Array) -> jax.Array:
    """The Gram matrix of a batch's outputs, centered at their mean: float `(batch, batch)`."""
    dtype = jnp.promote_types(outputs.dtype, jnp.float32)
    flat = outputs.reshape(len(outputs), -1).astype(dtype)
    flat = flat - flat.mean(axis=0)
    return jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)


def _centered(grams: np.ndarray) -> np.ndarray:
    """U-centered kernels `(layers, n, n)`; inner products are the unbiased HSIC up to a factor that depends only on n.

    Szekely and Rizzo 2014, definition 2; the same estimate as Song et al. 2012, equation 5.
    """
    number = grams.shape[-1]
    off = 1 - np.eye(number)
    grams = grams * off
    rows = grams.sum(axis=-1, keepdims=True) / (number - 2)
    total = grams.sum(axis=(-1, -2), keepdims=True) / ((number - 1) * (number - 2))
    return (grams - rows - np.swapaxes(rows, -1, -2) + total) * off


@drawing.style()
def similarity_chart(similarity: Similarity, first: str, second: str) -> Figure:
    """Plots CKA: the first network's layers from bottom to top, the second's from left to right; bright is similar.

    Args:
      first: the first network's name.
    """
    rows, columns = similarity.cka.shape
    cell = 0.22  # inches: enough for layer names
    figure, axes, picture = drawing.draw_grid(
        similarity.cka,
        dict(enumerate(map(chart_label, similarity.second_layers))),
        dict(enumerate(map(chart_label, similarity.first_layers))),
        size=(cell * columns + 3.2, cell * rows + 2.2),
        font_size=8,
        cmap="magma",
        vmin=0,
        vmax=1,
        origin="lower",
    )
    axes.set_xlabel(chart_label(second))
    axes.set_ylabel(chart_label(first))
    figure.colorbar(picture, shrink=0.8, label="linear CKA")
    return figure


def save_chart(similarity: Similarity, first: str, second: str, path: Path) -> None:
    """Writes `similarity_chart`.

    Raises:
      UserError: the suffix is not .png, .pdf or .svg.
      WriteError: the file cannot be written.
    """
    drawing.check_file(path)
    drawing.save_figure(similarity_chart(similarity, first, second), path)
