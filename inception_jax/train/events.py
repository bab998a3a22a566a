"""When a run evaluates, saves and ends: a function of the config and the completed steps."""

import dataclasses

from inception_jax.experiment import Experiment
from inception_jax.train.record import TrainingRecord


@dataclasses.dataclass(frozen=True)
class Events:
    """The actions that are due after a step.

    Attributes:
      total_steps: of the run.
      evaluate_every, evaluate_from: steps between evaluations, and the step of the first one. There is always an
        evaluation after the last step.
      save_every: steps between checkpoints, one or more numbers; 0: none.
      save_at: steps after which a checkpoint is saved, too.
      patience: number of evaluations without improvement after which training ends; 0: never.
      target: value of the watched metric at which training ends; 0: none.
      maximize: whether a larger value of the watched metric is better.
    """

    total_steps: int
    evaluate_every: int
    evaluate_from: int = 0
    save_every: tuple[int, ...] = ()
    save_at: tuple[int, ...] = ()
    patience: int = 0
    target: float = 0.0
    maximize: bool = True

    @classmethod
    def of(cls, experiment: Experiment) -> "Events":
        """The events of a run, with the config's epochs as steps."""
        evaluate, checkpoint = experiment.config.evaluate, experiment.config.checkpoint
        return cls(
            experiment.total_steps,
            evaluate.every_epochs * experiment.steps_per_epoch,
            evaluate.first_epoch * experiment.steps_per_epoch,
            tuple(every for every in (checkpoint.every_steps, checkpoint.keep_every_steps) if every),
            experiment.snapshots,
            evaluate.early_stopping_patience,
            evaluate.stop_at,
            evaluate.watch_mode == "max",
        )

    def evaluates(self, step: int, record: TrainingRecord) -> bool:
        """Whether to evaluate after `step`, unless that was done before the run was resumed."""
        due = step % self.evaluate_every == 0 and step >= self.evaluate_from
        return step > record.evaluated_step and (due or step == self.total_steps)

    def ended(self, step: int, record: TrainingRecord) -> str | None:
        """Why training ends after `step`: "early", "target", "completed" or "callback"; None if it continues."""
        if self.patience and record.evaluations_since_best >= self.patience:
            return "early"
        if self.reached(record.best_value):
            return "target"
        if step >= self.total_steps:
            return "completed"
        return "callback" if record.end_step is not None and step >= record.end_step else None

    def reached(self, value: float | None) -> bool:
        """Whether a value of the watched metric reaches the target."""
        if not self.target or value is None:
            return False
        return value >= self.target if self.maximize else value <= self.target

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after `step`, apart from those for evaluations and by time."""
        return step in self.save_at or any(step % every == 0 for every in self.save_every)

    def better(self, value: float, best: float | None) -> bool:
        """Whether a finite value of the watched metric is better than the best one so far."""
        return best is None or (value > best if self.maximize else value < best)
