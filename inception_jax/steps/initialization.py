"""Initial values without compilation: the results of a traced initialization, derived from its trace.

Compiling a network's initialization takes much of the time to the first training step on a CPU (for GoogLeNet 8 of 43
seconds of processor time, JAX 0.12), for numbers that are drawn, copied or constant. `evaluate` traces each result back
to its origin: constants are filled in by NumPy, arrays drawn by one of `models.initializers` are drawn by
`initializers.draw`, and keys and other scalars are computed one operation at a time. Results computed in any other way,
as in a network from outside the package, require compilation.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal  # pyright: ignore[reportPrivateImportUsage]
from jaxtyping import PRNGKeyArray

from inception_jax.models import initializers


class _Unknown(Exception):  # noqa: N818 (it is an answer)
    """A value is computed in a way that is not supported here."""


def evaluate(traced: Any, key: PRNGKeyArray) -> Any:
    """The result of a traced function of a key, `jax.jit(function).trace(key)`, bitwise equal to the compiled one.

    On CPUs the arrays are NumPy arrays unless something had to be compiled.
    """
    on_cpu = jax.default_backend() == "cpu"  # so that the bits equal those its own programs would draw
    partitionable = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    threefry = str(jax.random.key_impl(key)) == "threefry2x32" and partitionable
    if on_cpu and threefry:
        try:
            scope = _Scope(traced.jaxpr, [lambda: key])
            return jax.tree.unflatten(jax.tree.structure(traced.out_info), scope.results())
        except _Unknown:
            pass
    return traced.lower().compile(initializers.COMPILER_OPTIONS)(key)


class _Scope:
    """The variables of a traced function, computed on demand."""

    def __init__(self, closed: ClosedJaxpr, arguments: Sequence[Callable[[], Any]]):
        jaxpr = closed.jaxpr
        self._outvars = jaxpr.outvars
        self._known: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        self._arguments = dict(zip(jaxpr.invars, arguments, strict=True))
        self._makers = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
        self._inner: dict[int, _Scope] = {}  # of called functions, by their equation

    def results(self) -> list[Any]:
        return [self.value(variable) for variable in self._outvars]

    def value(self, variable: Any) -> Any:
        dtype = variable.aval.dtype
        if isinstance(variable, Literal):
            return np.asarray(variable.val, dtype)
        if variable not in self._known:
            given = self._arguments.get(variable)
            self._known[variable] = given() if given else self._make(variable, self._makers[variable])
        return self._known[variable]

    def _make(self, variable: Any, equation: Any) -> Any:
        operation, parameters, aval = equation.primitive.name, equation.params, variable.aval
        if operation in ("jit", "pjit"):
            if initializers.is_drawn(parameters["name"]):
                (of_key,) = equation.invars
                return initializers.draw(parameters["name"], self.value(of_key), aval.shape, aval.dtype)
            scope = self._inner.get(id(equation))
            if scope is None:
                arguments = [lambda outer=outer: self.value(outer) for outer in equation.invars]
                scope = self._inner[id(equation)] = _Scope(parameters["jaxpr"], arguments)
            return scope.value(scope._outvars[equation.outvars.index(variable)])
        if operation == "broadcast_in_dim" and not equation.invars[0].aval.shape and len(equation.invars) == 1:
            return np.full(aval.shape, self.value(equation.invars[0]), aval.dtype)
        is_key = jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)
        if (is_key or not aval.shape) and len(equation.outvars) == 1 and all(not v.aval.shape for v in equation.invars):
            return equation.primitive.bind(*map(self.value, equation.invars), **parameters)
        raise _Unknown(operation)
