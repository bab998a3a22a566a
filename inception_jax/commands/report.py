"""`inception-jax report`: a run on one page, or several runs side by side."""

import argparse
from pathlib import Path
from typing import Any

from inception_jax import process
from inception_jax.commands import flags
from inception_jax.errors import UntrustedError, UserError, check_choice
from inception_jax.process import log_to_stderr
from inception_jax.text import complain, say

EXAMPLES = """\
examples:
  inception-jax report runs/googlenet_cifar10
  inception-jax report runs/googlenet_cifar10 runs/slower --output comparison.html
  inception-jax report runs/googlenet_cifar10 --quick
  inception-jax report runs/googlenet_cifar10 --format markdown --output docs/googlenet

The page contains the results and curves and, if the data is still available, the accuracy of each class, confusions,
the most confident mistakes and Grad-CAM.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "report",
        run,
        help="write an HTML report of a run, or of several side by side",
        description="Writes a self-contained HTML report of a run, or compares several runs in one report.",
        examples=EXAMPLES,
    )
    flags.add_runs(parser, nargs="+")
    parser.add_argument("--format", default="html", metavar="FORMAT", help="html (default) or markdown")
    parser.add_argument(
        "--output",
        metavar="PATH",
        type=flags.path,
        help="HTML file (default: RUN/report.html; for several runs: report.html), or for markdown a folder "
        "(default: RUN/report; for several runs: report)",
    )
    flags.add_split(parser)
    flags.add_network(parser)
    parser.add_argument(
        "--quick", "--no-pictures", action="store_true", help="skip what needs the network and its data"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the page and prints its path; omitted parts are reported on stderr."""
    # Imported only now: help is shown without waiting for JAX.
    from inception_jax.runs.records import read_records
    from inception_jax.trained import report
    from inception_jax.trained.report.page import FORMATS

    check_choice("--format", args.format, FORMATS)
    check_choice("--checkpoint", args.checkpoint, ("best", "latest"))
    flags.check_at_least_1(args, "batch_size")
    # Report mistakes before computing anything.
    folders: list[Path] = [record.folder for record in read_records(args.run_folders)]
    output = args.output or report.default_output(args.run_folders, args.format)
    findings: dict[str | Path, Any] = {}
    if not args.quick:
        from inception_jax.trained.report.findings import examine

        process.use_compilation_cache()
        for folder in folders:
            try:
                with log_to_stderr():
                    findings[folder] = examine(
                        folder,
                        split=args.split,
                        checkpoint=args.checkpoint,
                        batch_size=args.batch_size,
                        trust_code=args.trust_code,
                    )
            except UntrustedError as error:
                raise UserError(f"{error}; --quick skips this") from error
            except UserError as error:
                if args.split:  # a split requested by name is not omitted
                    raise
                findings[folder] = error
                complain(f"{folder}: classes, mistakes and Grad-CAM are skipped: {error}")
    say(report.write_report(folders, output, style=args.format, findings=findings))
    return 0
