"""Programs that tests start, in place of `python -m inception_jax.main` and `inception-jax study`."""

from pathlib import Path

from inception_jax.studies.plan import PlannedRun

# As `python -m inception_jax.main`, but training writes no report, as in the tests' own processes.
TRAINER = """
import sys
from inception_jax import main
from inception_jax.train import training
training._write_report = lambda folder: None
sys.exit(main.main())
"""
# As `inception-jax`, but the runs of studies are trained by TRAINER.
STUDIES = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import programs
from inception_jax.commands import main
programs.PlannedRun.command = programs.command
sys.exit(main())
"""

_command = PlannedRun.command


def command(planned: PlannedRun, folder: Path | None = None) -> list[str]:
    """`PlannedRun.command` with TRAINER."""
    python, _, _, _, *flags = _command(planned, folder)
    return [python, "-P", "-c", TRAINER, *flags]
