"""The compiled programs of the training step."""

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import NamedSharding, PartitionSpec

from inception_jax.distributed import multihost
from inception_jax.train import start
from inception_jax.train.session import Session


class TrainStep:
    """The programs of the training step: one, and another for the first steps if the trunk is frozen in them.

    Args:
      session: from which a batch is read, but not consumed.
    """

    def __init__(self, session: Session):
        self._session = session
        self._programs: dict[bool, Callable] = {}  # by whether the trunk is frozen

    def after(self, step: int) -> Callable:
        """The program of the step after `step`, compiled when it is needed for the first time."""
        frozen = step < self._session.experiment.frozen_steps
        if frozen not in self._programs:
            with self._session.timing_interrupted(step):
                self.compile_for(step)
        return self._programs[frozen]

    def compile_for(self, step: int) -> None:
        """Compiles the program of the step after `step`, or reads it from the cache."""
        session, experiment = self._session, self._session.experiment
        frozen = step < experiment.frozen_steps
        program = jax.jit(
            session.votes.counted(partial(experiment.train_step, frozen=frozen)),
            donate_argnames="state",
            out_shardings=NamedSharding(session.start.mesh, PartitionSpec()),
            compiler_options=experiment.compiler_options,
        )
        traced = program.trace(session.start.template, *session.example(), session.key, *session.votes.cast())
        with start.saying_that_it_compiles(traced):
            self._programs[frozen] = traced.lower().compile()
        # One process may have compiled for minutes while another found its program in the cache.
        multihost.wait_for_all("compiled")
