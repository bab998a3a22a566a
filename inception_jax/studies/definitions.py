"""Definitions of studies: variations of a config, their published results, and the claims to test."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from inception_jax.errors import UserError, check_choice, unknown_name

EXPECTED = ("higher", "lower", "same", "between")


@dataclasses.dataclass(frozen=True)
class Variation:
    """One row of a study: a config with some fields set.

    Attributes:
      fields: values by full field name, {"schedule.patience": 5}; they override the study's.
      config: a config file's path or a shipped config's name; "": the study's.
      published: published results by measure (see `results.measure`): {"best_test_top1": 0.8544}.
      source: of the published results, if it differs from the study's.
      note: for readers of the table.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: str = ""
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    source: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement that the runs can confirm or refute.

    Attributes:
      measure: of each run, see `results.measure`.
      first: a variation; it is compared with `second` by the difference of their measures for each seed.
      second: the variation whose measure is subtracted.
      expected: "higher" or "lower": the first than the second; "same": they differ by less than the margin; "between":
        the measure of the first is within the limits, and there is no second.
      margin: for "same", in the measure's unit.
      limits: for "between", (lowest, highest).
      than: two further variations: the difference above is compared with theirs, third minus fourth, instead of 0.
      published: the source's difference; if the claim is undecided, the report says how many seeds could show it.
    """

    text: str
    measure: str
    first: str
    second: str = ""
    expected: str = "higher"
    margin: float = 0.0
    limits: tuple[float, float] = (0.0, 0.0)
    than: tuple[()] | tuple[str, str] = ()
    published: float = math.nan

    @property
    def variations(self) -> tuple[str, ...]:
        """The names of all variations that it is about."""
        return tuple(filter(None, (self.first, self.second, *self.than)))

    def __post_init__(self) -> None:
        check_choice("expectation", self.expected, EXPECTED)
        if (self.expected == "between") == bool(self.second):
            raise UserError(f"the claim {self.text!r} must have a second variation if it compares two, and only then")
        if self.than and (len(self.than) != 2 or not self.second):
            raise UserError(f"the claim {self.text!r} must compare two variations with two others in `than`")
        if self.expected == "same" and self.margin <= 0:
            raise UserError(f"the claim {self.text!r} needs a margin: the largest difference that does not matter")


@dataclasses.dataclass(frozen=True)
class Minimum:
    """A row below the minimum is a smoke run: it shows that the code works, and nothing is concluded from it."""

    images: int = 1  # in a training epoch
    epochs: float = 1
    seeds: int = 1


@dataclasses.dataclass(frozen=True)
class Form:
    """A size in which a study can be run.

    Attributes:
      fields: set in every variation; they override its own.
      own: further fields of single variations, by name; they override all others.
      seeds: of the runs of every variation.
      variations: shell patterns for the names of the variations that it includes.
      shared: variations whose runs are those of another study in the form of the same name, as "STUDY/VARIATION". They
        are trained once, whichever study comes first; both must give the same config.
      minimum: instead of the study's.
      note: its purpose and hardware.
    """

    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    variations: tuple[str, ...] = ("*",)
    shared: Mapping[str, str] = dataclasses.field(default_factory=dict)
    minimum: Minimum | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Range:
    """A range from which a search draws numbers, uniformly or log-uniformly."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise UserError(f"{self} is not a range: low must be less than high, and above 0 if log=True")


@dataclasses.dataclass(frozen=True)
class Search:
    """A grid or random search over some fields, optionally followed by a finer search near the best combination.

    Attributes:
      fields: for each field a tuple of values, or a Range.
      draws: number of random combinations; 0: all combinations (of tuples only).
      finer: number of further draws near the best values, from ranges `shrink` times as wide; tuples keep its value.
      measure: to maximize or, if `lowest`, to minimize.
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
    """Evaluation after training, of other data or in another way; its measures are NAME_top1, NAME_top5 and NAME_loss.

    Attributes:
      fields: of `config.data`, as for `evaluate.load_for`: {"name": "cifar10"}; {}: the run's own data.
      class_map: from the data's classes to the network's if names differ; entries that either side lacks are ignored.
      tta: test-time augmentation, as for `evaluate.predictions`.
      variations: shell patterns for the names of the variations that are evaluated.
    """

    name: str
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    split: str = "test"
    class_map: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tta: str = "none"
    variations: tuple[str, ...] = ("*",)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A row that combines two variations: one network for color pictures, the other for those stored in grayscale."""

    color: str
    grayscale: str
    published: Mapping[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """Variations of a config, with published numbers and claims to test.

    Attributes:
      title: of the report.
      text: what the source did, and where ours differs, in paragraphs.
      source: of the published numbers.
      config: the config that variations start from.
      fields: set in all variations.
      variations: by name; a search adds its own.
      measures: columns of the table of results; names of measures selected on test data are marked.
      curves: columns of metrics.csv that are plotted over the epochs.
      gradient_norms: whether gradient norms are measured by layer, at the start and at the end.
      predict: a folder of unlabeled pictures in data.folder or data.archives whose predicted classes are saved.
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
            for name in claim.variations:
                if name not in self.variations and name not in self.pairs:
                    raise unknown_name(f"variation in the claim {claim.text!r}", name, [*self.variations, *self.pairs])
        for form in self.forms.values():
            for name in (*form.own, *form.shared):
                check_choice("variation in a form", name, self.variations)
            for row in form.shared.values():
                if not all(row.partition("/")):
                    raise UserError(f"shared={row!r} is not allowed: it must be STUDY/VARIATION")
        for pair in self.pairs.values():
            for name in (pair.color, pair.grayscale):
                check_choice("variation in a pair", name, self.variations)
