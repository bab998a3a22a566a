"""Flags shared by several commands, so that a flag always means the same."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inception_jax import files
from inception_jax.config import Config
from inception_jax.config.files import find_config_and_argument, load_config
from inception_jax.errors import UserError

if TYPE_CHECKING:
    from inception_jax.runs.run import Run


def path(text: str) -> Path:
    """Converts a path on the command line, for `type=`: "~" is the home directory, and an empty text is refused."""
    try:
        return files.expand(text, "the path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def config(text: str) -> Config:
    """The config for NAME_OR_FILE or NAME_OR_FILE:ARGUMENT.

    Raises:
      UserError: it does not exist, or the file fails.
    """
    return load_config(*find_config_and_argument(text))


def add_command(
    subparsers: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    description: str,
    examples: str,
    takes_fields: bool = False,
) -> argparse.ArgumentParser:
    """Adds a subcommand to the command line, and returns its parser.

    Args:
      run: does what the command is for, and returns the exit code.
      help: a line for the list of commands.
      examples: printed below the flags, as they are.
      takes_fields: whether --config.FIELD=VALUE is allowed, see `main`.
    """
    parser = subparsers.add_parser(
        name,
        help=help,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, **({"takes_fields": True} if takes_fields else {}))
    return parser


def complete(action: argparse.Action, words: Callable[[str], Iterable[str]]) -> None:
    """Completes an argument in a shell with these words, given what has been typed of it."""
    vars(action)["completer"] = lambda prefix, **_: list(words(prefix))  # argcomplete's


def add_runs(parser: argparse.ArgumentParser, nargs: int | str | None) -> None:
    """Adds the folders of runs, as `run_folders`; with nargs=None a single one, as `run_folder`."""
    name = "run_folder" if nargs is None else "run_folders"
    parser.add_argument(name, metavar="RUN", type=path, nargs=nargs, help="folder of a run")


def add_source(parser: argparse.ArgumentParser) -> None:
    """Adds a trained network, as `source`: a run, or a file that `export` wrote."""
    parser.add_argument("source", metavar="RUN", type=path, help="folder of a run, or a .stablehlo or .onnx file")


def add_json(parser: argparse.ArgumentParser, json: str = "print JSON instead of a table", csv: str = "") -> None:
    """Adds --json and, if it has a help text, --csv; only one of them can be given."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help=json)
    if csv:
        form.add_argument("--csv", action="store_true", help=csv)


def add_split(parser: argparse.ArgumentParser) -> None:
    """Adds the name of a split."""
    parser.add_argument("--split", metavar="NAME", help="(default: test, or validation if there is no test split)")


def add_places(parser: argparse.ArgumentParser) -> None:
    """Adds flags for where a data set's files are, and where prepared data is kept."""
    parser.add_argument("--folder", metavar="DIR", type=path, help="folder of pictures, for image_folder and similar")
    parser.add_argument("--archives", metavar="DIR", type=path, help="original archives, instead of downloading them")
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        type=path,
        help="folder for prepared data (default: $INCEPTION_JAX_DATA, else ~/.cache/inception_jax)",
    )


def places(args: argparse.Namespace) -> dict[str, str | None]:
    """The fields of `config.data` that the flags of `add_places` set; None where a flag is not given."""
    given = {"folder": args.folder, "archives": args.archives, "directory": args.data_dir}
    return {field: None if place is None else str(place) for field, place in given.items()}


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds flags for the examples: a split of a run's own data or of another data set."""
    add_split(parser)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--data", metavar="NAME", help="another data set (default: the run's own)")
    other.add_argument("--config", metavar="NAME_OR_FILE", help="config whose data and splits to use instead")
    add_places(parser)
    parser.add_argument(
        "--keep", choices=("all", "color", "grayscale"), help="pictures to use, by color mode as stored"
    )
    parser.add_argument(
        "--class-map", metavar="FILE", type=path, help='JSON: {"class of the data": "class of the run"}'
    )


def data_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `config.data` that the flags of `add_data` set."""
    from inception_jax.trained.evaluate import source_fields  # only now: help is shown without waiting for JAX

    given = {"name": args.data, "keep": args.keep} | places(args)
    fields = source_fields(config(args.config)) if args.config else {}
    return fields | {field: value for field, value in given.items() if value is not None}


def add_network(parser: argparse.ArgumentParser, batch_size: int = 128) -> None:
    """Adds flags for a run's weights and the batch size."""
    add_checkpoint(parser)
    parser.add_argument("--batch-size", type=int, default=batch_size, help="(default: %(default)s)")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Adds the flag for the data type of a network's computation."""
    parser.add_argument(
        "--dtype", metavar="TYPE", help="type to compute in: float32 or bfloat16 (default: as in training)"
    )


def add_engine(parser: argparse.ArgumentParser, auto: str) -> None:
    """Adds the flag for what computes the logits on a CPU; `auto` says when that tries out engines."""
    parser.add_argument(
        "--engine",
        default="auto",
        metavar="NAME",
        help=f"on a CPU: jax, onnxruntime, openvino, or auto, {auto} (default: auto)",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that allows a run's folder to name code."""
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="import a network, data set or metrics that the run names in a module outside the package",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds flags for a run's weights and whether its folder may name code."""
    add_trust(parser)
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best or latest (default: best)")


def weights_of(trained: "Run") -> dict[str, Any]:
    """Which weights of a run were loaded, as JSON values."""
    return {
        "run": str(trained.folder),
        "checkpoint": trained.checkpoint,
        "step": trained.step,
        "epoch": trained.epoch,
    }


def weights_in_words(*weights: Mapping[str, Any]) -> str:
    """Which weights of one or more runs were loaded, in words."""
    words = [f"{each['checkpoint']}, step {each['step']:,} (epoch {each['epoch']:.4g})" for each in weights]
    return "; ".join(words[:2]) + ("; ..." if len(words) > 2 else "")


def check_at_least_1(args: argparse.Namespace, *names: str) -> None:
    """Raises UserError if one of these flags, named as in `args`, is given as less than 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}={value} is not allowed: it must be at least 1")
