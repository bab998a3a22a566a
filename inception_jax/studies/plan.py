"""Plans the runs of a study: their configs, folders and commands. Does not import JAX."""

import dataclasses
import fnmatch
import itertools
import json
import random
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from inception_jax import files
from inception_jax.config import Config, validate
from inception_jax.config import files as config_files
from inception_jax.errors import UserError, check_choice, unknown_name
from inception_jax.studies.definitions import Form, Minimum, Range, Search, Study, Variation

FINER = "finer"  # how the names of the variations of a search's second round begin


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One training run: a variation with a seed.

    Attributes:
      config: the shipped config or config file that it starts from.
      fields: all fields that are set, by full name.
      folder: of the run.
    """

    variation: str
    seed: int
    config: str
    fields: Mapping[str, Any]
    folder: Path

    @property
    def flags(self) -> list[str]:
        """Flags of the training command, without the folder."""
        fields = [f"--config.{name}={_as_text(value)}" for name, value in self.fields.items()]
        return [f"--config={self.config}", *fields]

    def command(self, folder: Path | None = None) -> list[str]:
        """The training command; -P keeps modules in the current folder from hiding installed ones."""
        return [sys.executable, "-P", "-m", "inception_jax.main", *self.flags, f"--workdir={folder or self.folder}"]

    def shown(self) -> str:
        """The command as shown to users, to be run in a folder from which the study's own files are found."""
        return shlex.join(["python", "-m", "inception_jax.main", *self.flags])

    def load_config(self) -> Config:
        """The config that the command creates."""
        return self._config(self.flags[1:])

    def _config(self, flags: list[str]) -> Config:
        config = config_files.load_config(*config_files.find_config_and_argument(self.config))
        config_files.override(config, ["", *flags])
        return config

    def check(self) -> None:
        """Raises UserError if the config is invalid."""
        try:
            validate(self.load_config())
        except UserError as error:
            raise UserError(f"variation {self.variation}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study in one of its forms: what to run, and where.

    Attributes:
      name: of the study's file.
      form_name: including the number of epochs if it is overridden.
      folder: contains a folder for each variation, with a folder for each seed.
      variations: by name, including those of the search that are known so far.
    """

    study: Study
    name: str
    form_name: str
    form: Form
    folder: Path
    variations: Mapping[str, Variation]
    runs: tuple[PlannedRun, ...]

    @property
    def minimum(self) -> Minimum:
        """What is below it is a smoke run."""
        return self.form.minimum or self.study.minimum

    @property
    def runs_to_come(self) -> int:
        """The number of runs of a search's second round, as long as they are not planned."""
        search = self.study.search
        if not search or not _searched(search, {}).keys() <= self.variations.keys():
            return 0
        planned = any(name.startswith(FINER) for name in self.variations)
        return 0 if planned else search.finer * len(self.form.seeds)

    def runs_of(self, variation: str) -> list[PlannedRun]:
        """The runs of a variation, in the order of the seeds."""
        return [planned for planned in self.runs if planned.variation == variation]


def shipped_studies() -> dict[str, Path]:
    """The studies that come with the package, from name to file, sorted by name."""
    folders = {path.parent / "studies" for path in config_files.shipped_configs().values()}
    return {path.stem: path for folder in sorted(folders) for path in sorted(folder.glob("*.py"))}


def load_study(name_or_path: str) -> tuple[str, Study]:
    """Loads a study by path or shipped name; returns its name and the result of the file's `get_study()`.

    Raises:
      UserError: there is no such study, or the file fails.
    """
    shipped = shipped_studies()
    path = shipped.get(name_or_path) or files.expand(name_or_path, "the study")
    if not path.is_file():
        raise unknown_name("study", name_or_path, shipped)
    study = config_files.run_file(path, "get_study")
    if not isinstance(study, Study):
        raise UserError(f"study file {path} needs a function get_study() that returns an inception_jax.studies.Study")
    return path.stem, study


def make_plan(
    name: str,
    study: Study,
    form_name: str,
    folder: Path,
    *,
    only: Iterable[str] = (),
    epochs: int | None = None,
    fields: Iterable[str] = (),
    found: Mapping[str, float] | None = None,
) -> Plan:
    """Plans all runs of a study in one form.

    Args:
      folder: of all studies; the plan's own is FOLDER/NAME/FORM.
      only: shell patterns of variations; empty: all variations of the form.
      epochs: overrides each config's number.
      fields: "--config.FIELD=VALUE" as on the command line, for all runs.
      found: the measure by variation in a search's first round; once complete, the second round is planned, too.

    Raises:
      UserError: a form, pattern or field is unknown, or a config is invalid.
    """
    check_choice("form", form_name, study.forms)
    form = study.forms[form_name]
    variations = dict(study.variations)
    if study.search:
        variations |= _searched(study.search, found or {})
    chosen = {key: value for key, value in variations.items() if matches(key, form.variations)}
    for pattern in only:
        if not any(matches(key, [pattern]) for key in chosen):
            raise unknown_name("variation", pattern, chosen)
    chosen = {key: value for key, value in chosen.items() if not only or matches(key, only)}
    more: dict[str, Any] = dict(_split_flag(flag) for flag in fields)
    if epochs:
        more["num_epochs"], form_name = epochs, f"{form_name}-{epochs}epochs"
    runs = tuple(
        PlannedRun(
            key,
            seed,
            variation.config or study.config,
            {**study.fields, **variation.fields, **form.fields, **form.own.get(key, {}), **more, "seed": seed},
            _row_folder(Path(folder), name, form_name, form.shared.get(key, key)) / f"seed{seed}",
        )
        for key, variation in chosen.items()
        for seed in form.seeds
    )
    for planned in runs:
        if planned.seed == form.seeds[0]:
            planned.check()
    return Plan(study, name, form_name, form, Path(folder, name, form_name), chosen, runs)


def _row_folder(folder: Path, study: str, form: str, row: str) -> Path:
    """The folder of a variation's runs; `row` is its name, or "STUDY/VARIATION" if it is another study's."""
    other, _, variation = row.rpartition("/")
    return folder / (other or study) / form / variation


def _searched(search: Search, found: Mapping[str, float]) -> dict[str, Variation]:
    """The variations of a search: the first round and, once its results are known, the second round."""
    draw = random.Random(search.seed)
    if search.draws:
        values = [{name: _draw(draw, kind) for name, kind in search.fields.items()} for _ in range(search.draws)]
    else:
        tuples = [kind for kind in search.fields.values() if isinstance(kind, tuple)]
        values = [dict(zip(search.fields, chosen, strict=True)) for chosen in itertools.product(*tuples)]
    first = {f"draw{index:03d}": _drawn(chosen) for index, chosen in enumerate(values)}
    if not search.finer or not first.keys() <= found.keys():
        return first
    pick = min if search.lowest else max
    best = first[pick(first, key=lambda name: found[name])].fields
    near = {name: _near(kind, best[name], search.shrink) for name, kind in search.fields.items()}
    draw = random.Random(search.seed + 1)
    finer = [{name: _draw(draw, kind) for name, kind in near.items()} for _ in range(search.finer)]
    return first | {f"{FINER}{index:03d}": _drawn(chosen) for index, chosen in enumerate(finer)}


def _drawn(fields: Mapping[str, Any]) -> Variation:
    """The variation with these fields, which its note states."""
    return Variation(fields, note=", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in fields.items()))


def _draw(draw: random.Random, kind: tuple | Range) -> Any:
    if isinstance(kind, tuple):
        return draw.choice(kind)
    share = draw.random()
    value = kind.low * (kind.high / kind.low) ** share if kind.log else kind.low + (kind.high - kind.low) * share
    return float(f"{value:.4g}")


def _near(kind: tuple | Range, value: Any, shrink: float) -> tuple | Range:
    """A range around a value, `shrink` times as wide and within the original one."""
    if isinstance(kind, tuple):
        return (value,)
    if kind.log:
        reach = (kind.high / kind.low) ** (shrink / 2)
        return Range(max(kind.low, value / reach), min(kind.high, value * reach), log=True)
    reach = (kind.high - kind.low) * shrink / 2
    return Range(max(kind.low, value - reach), min(kind.high, value + reach))


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the name of a variation fits one of the shell patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _as_text(value: Any) -> str:
    if isinstance(value, tuple):
        # Strings have double quotes, since the shell's are single; JSON's escapes would split an emoji in two.
        texts = (json.dumps(item, ensure_ascii=False) if isinstance(item, str) else repr(item) for item in value)
        items = ", ".join(texts)
        return f"({items}{',' if len(value) == 1 else ''})"
    return str(value)


def _split_flag(flag: str) -> tuple[str, str]:
    match = re.fullmatch(r"--?config\.([^=]+)=(.*)", flag, re.DOTALL)
    if not match:
        raise UserError(f"unexpected argument {flag!r}: fields have the form --config.FIELD=VALUE")
    return match[1], match[2]


def state_of(planned: PlannedRun) -> str:
    """The state of a run: "complete", "begun" or "missing"."""
    if (planned.folder / "summary.json").is_file():
        return "complete"
    return "begun" if (planned.folder / "config.json").is_file() else "missing"


def read_json(path: Path) -> dict[str, Any]:
    """Reads a run's JSON file; {} if there is none.

    Raises:
      UserError: the file is damaged.
    """
    content = files.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it has no fields")
    return content


def check_place(planned: PlannedRun) -> Config:
    """Returns the config of a run that may be started or resumed in its folder.

    Raises:
      UserError: the run's folder holds a run with another config.
    """
    from inception_jax.runs.folder import config_differences  # imports JAX, which planning alone does not need

    note = planned.folder.with_suffix(".json")
    config = planned.load_config()
    if note.is_file() and (differences := config_differences(ConfigDict(read_json(note)), config)):
        raise UserError(
            f"{planned.folder} contains a run with another config: {'; '.join(differences)}. Choose another --workdir"
        )
    return config


def start(planned: PlannedRun) -> None:
    """Creates the parent folder of a run, and saves its config there.

    Raises:
      UserError: the run's folder holds a run with another config.
    """
    config = check_place(planned)
    note = planned.folder.with_suffix(".json")
    planned.folder.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(note, json.loads(config.to_json()))
