"""What a study file says: variations of a config, what was published of them, and the claims to test."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from inception_jax.errors import UserError, unknown_name

EXPECTED = ("higher", "lower", "same", "between")


@dataclasses.dataclass(frozen=True)
class Variation:
    """One row of a study: a config, with some fields set.

    Attributes:
      fields: values by the full names of fields, {"schedule.patience": 5}; they come after the study's own.
      config: a config file's path or a shipped config's name; "": the study's.
      published: what the source found, by measure (see `results.measure`): {"best_test_top1": 0.8544}.
      source: where that stands, when it is not where the study's numbers stand.
      note: what the reader of a table should know.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: str = ""
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    source: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence that the runs can show to be right or wrong.

    Attributes:
      measure: of each run, see `results.measure`.
      first, second: variations; what is compared is the measure of the first less that of the second, seed by seed.
      expected: "higher" or "lower": the first than the second; "same": they differ by less than the margin; "between":
        the first one's measure is within the limits, and there is no second.
      margin: of "same", in the measure's unit.
      limits: of "between", (least, most).
    """

    text: str
    measure: str
    first: str
    second: str = ""
    expected: str = "higher"
    margin: float = 0.0
    limits: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.expected not in EXPECTED:
            raise unknown_name("expectation", self.expected, EXPECTED)
        if (self.expected == "between") == bool(self.second):
            raise UserError(f"the claim {self.text!r} needs a second variation exactly where it compares two")
        if self.expected == "same" and self.margin <= 0:
            raise UserError(f"the claim {self.text!r} needs a margin: the largest difference that does not matter")


@dataclasses.dataclass(frozen=True)
class Form:
    """A size in which a study can be run.

    Attributes:
      fields: set in every variation, after its own.
      seeds: of the runs of every variation.
      variations: shell patterns of the names of those that belong to it.
      note: what it is for, and on what hardware.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    variations: tuple[str, ...] = ("*",)
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Minimum:
    """Below it a row is a smoke run: it shows that the code works, and nothing is concluded from it."""

    images: int = 1  # that a training epoch has
    epochs: float = 1
    seeds: int = 1


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that a search draws from, evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise UserError(f"{self} is no range: low must be less than high, and above 0 where log=True")


@dataclasses.dataclass(frozen=True)
class Search:
    """Variations that differ in the values of some fields: all combinations, or draws, then finer ones near the best.

    Attributes:
      fields: for each field a tuple of values, or a Range.
      draws: how many combinations are drawn; 0: all there are (of tuples alone).
      finer: how many more, within `shrink` of the ranges around the best one's values; tuples keep its value.
      measure: what is to be high in the best one; `lowest`: or low.
      seed: of the draws.
    """

    fields: Mapping[str, tuple | Range]
    draws: int = 0
    finer: int = 0
    shrink: float = 0.25
    measure: str = "best_validation_top1"
    lowest: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = [name for name, values in self.fields.items() if isinstance(values, Range)]
        if ranges and not self.draws:
            raise UserError(f"a search over the range of {ranges[0]} needs the number of draws")
        if self.finer and not ranges:
            raise UserError("a finer search needs a field with a Range")


@dataclasses.dataclass(frozen=True)
class CrossEvaluation:
    """A network on other data after its training; its measures are NAME_top1, NAME_top5 and NAME_loss.

    Attributes:
      fields: of `config.data`, as for `evaluate.load_for`: {"name": "cifar10"}.
      class_map: the network's class for the data's, where names differ; what either side lacks is passed over.
    """

    name: str
    fields: Mapping[str, Any]
    split: str = "test"
    class_map: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A further row made of two variations: one's network for colour pictures, the other's for those stored without."""

    color: str
    grayscale: str
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """A list of variations of a config, with the published numbers and the claims to test.

    Attributes:
      title: of the report.
      text: what was done in the source, and where ours departs: paragraphs.
      source: of the published numbers.
      config: the config that variations start from.
      fields: set in all of them.
      variations: by name; a search adds its own.
      measures: the columns of the table of results; what the source selected on test data is marked by its name.
      curves: columns of metrics.csv that are drawn over the epochs.
      gradient_norms: whether the gradient's norm is measured layer by layer, at the start and at the end.
      predict: a folder of unlabelled pictures below data.folder or data.archives whose classes are written to a file.
    """

    title: str
    source: str
    config: str
    text: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    variations: Mapping[str, Variation] = dataclasses.field(default_factory=dict)
    pairs: Mapping[str, Pair] = dataclasses.field(default_factory=dict)
    search: Search | None = None
    forms: Mapping[str, Form] = dataclasses.field(default_factory=lambda: {"full": Form()})
    minimum: Minimum = Minimum()
    claims: tuple[Claim, ...] = ()
    measures: tuple[str, ...] = ("best_test_top1", "final_test_top1")
    curves: tuple[str, ...] = ("train_loss", "validation_loss", "train_top1", "validation_top1")
    evaluations: tuple[CrossEvaluation, ...] = ()
    gradient_norms: bool = False
    predict: str = ""

    def __post_init__(self) -> None:
        if not self.variations and not self.search:
            raise UserError(f"the study {self.title!r} has neither variations nor a search")
        for claim in self.claims:
            for name in filter(None, (claim.first, claim.second)):
                if name not in self.variations and name not in self.pairs:
                    raise unknown_name(f"variation in the claim {claim.text!r}", name, [*self.variations, *self.pairs])
        for pair in self.pairs.values():
            for name in (pair.color, pair.grayscale):
                if name not in self.variations:
                    raise unknown_name("variation in a pair", name, self.variations)
