"""Inference on CPUs with ONNX Runtime or OpenVINO instead of JAX, from the graph that this package exports.

`use` returns the same network with another engine computing its `logits`. An engine is used only after its logits have
been compared with the network's own.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from inception_jax.errors import UserError, check_choice
from inception_jax.inference.predictor import Predictor
from inception_jax.runs.run import Run
from inception_jax.trained.export import Exported, run_as_onnx

Engine = Callable[[np.ndarray], np.ndarray]  # the graph's input images -> logits; thread-safe

# Types that each engine supports, with its own names for them.
TYPES = {"onnxruntime": {"float32": ""}, "openvino": {"float32": "f32", "bfloat16": "bf16"}}
# Largest allowed difference from the network's own logits, relative to the largest of these. In float32, engines sum in
# a different order: 3e-6 for GoogLeNet. In bfloat16 they also round at different points: 0.02.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.05}
CHECKED = 4  # images for comparing logits, unless a trial needs more
TRIAL_SECONDS = 1.5  # duration of a trial, or one round of all engines if that is longer
TRIAL_ROUNDS = 7
MARGIN = 1.05  # minimum speed of another engine, relative to JAX, to be chosen
# OpenVINO's programs for a known number of images are 5 to 15 % faster than those for any number, and up to 15 % more
# with a part of the batch on each core (GoogLeNet, bfloat16, 2 cores); each takes a fifth of a second to compile.
FIXED_SIZES = 16
IMAGES_EACH = 4  # at least so many for each core
COARSE = 8  # pixels: side of the areas of uniform color in half of the trial images

logger = logging.getLogger(__name__)


def use(classifier: Predictor, engine: str = "auto", *, batch_size: int) -> Predictor:
    """Returns the same network with `engine` computing its `logits`; the choice of "auto" and its reason are logged.

    `Run.logits` also accepts images of other sizes than in training. JAX still computes those.

    Args:
      engine: "jax"; "onnxruntime", in float32; "openvino", in float32 or bfloat16, like the network; or "auto": the
        fastest in a short trial of those that are installed and reproduce the network's logits, or JAX if it uses an
        accelerator.
      batch_size: batch size of the trial. Later batches may differ.

    Raises:
      UserError: batch_size is below 1; the engine is unknown or not installed, does not support the network's type or
        what was loaded, or its logits differ from the network's. "auto" leaves such engines out, and says so.
    """
    check_choice("engine", engine, ("auto", "jax", *ENGINES))
    if not isinstance(classifier, Run | Exported):
        raise UserError(f"engine={engine} is for runs and exported files, not for {type(classifier).__name__}")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is not allowed: it must be at least 1")
    if classifier.engine is not None:
        classifier = dataclasses.replace(classifier, engine=None)
    own = _own_engine(classifier)
    if engine == own:
        return classifier
    if engine == "auto":
        return _choose(classifier, own, batch_size)
    if isinstance(classifier, Exported) and (own == "jax" or engine == "jax"):
        form = "stablehlo" if engine == "jax" else "onnx"
        raise UserError(f"engine={engine} cannot run {classifier.path}: give the run's folder, or a .{form} file")
    if jax.default_backend() != "cpu":
        raise UserError(
            f"engine={engine} runs on CPUs only, but JAX uses the {jax.default_backend()} here: omit the engine, "
            "or set JAX_PLATFORMS=cpu"
        )
    if _dtype(classifier) not in TYPES[engine]:
        raise UserError(
            f"engine={engine} supports {' or '.join(TYPES[engine])}, but the network computes in {_dtype(classifier)}: "
            "choose another engine, or dtype=float32"
        )
    made = _make(classifier, engine, _graph(classifier))
    images = _examples(classifier.transform.image_shape, CHECKED)
    _check(engine, made, classifier.logits(images), images, _dtype(classifier))
    return made


def _choose(classifier: Run | Exported, own: str, batch_size: int) -> Run | Exported:
    """The network with the fastest engine, its own or another, that reproduces its logits."""
    if jax.default_backend() != "cpu" or (isinstance(classifier, Exported) and own == "jax"):
        return classifier
    dtype = _dtype(classifier)
    others = [name for name in ENGINES if name != own and dtype in TYPES[name]]
    installed = [name for name in others if importlib.util.find_spec(name)]
    if not installed:
        why = f"not installed: {', '.join(others)}" if others else f"other engines do not support {dtype}"
        logger.info("engine: %s; %s", own, why)
        return classifier
    try:
        graph = _graph(classifier)
    except UserError as error:
        logger.info("engine: %s; %s", own, error)
        return classifier
    images = _examples(classifier.transform.image_shape, batch_size)
    expected, found = classifier.logits(images), {own: classifier}
    for name in installed:
        try:
            made = _make(classifier, name, graph)
            _check(name, made, expected, images, dtype)
            found[name] = made
        except UserError as error:
            logger.warning("%s", error)
    if len(found) == 1:
        logger.info("engine: %s", own)
        return classifier
    rates = trial({name: each.logits for name, each in found.items()}, images)
    fastest = max(found, key=lambda name: rates[name] / (1 if name == own else MARGIN))
    slower = ", ".join(f"{name} {rates[name]:,.4g}" for name in found if name != fastest)
    logger.info("engine: %s, %s images/s (%s)", fastest, f"{rates[fastest]:,.4g}", slower)
    return found[fastest]


def trial(engines: Mapping[str, Engine], images: np.ndarray) -> dict[str, float]:
    """Images per second of each: the median over rounds in which they take turns. Each must have been called before."""
    took: dict[str, list[float]] = {name: [] for name in engines}
    end = time.perf_counter() + TRIAL_SECONDS
    for number in range(TRIAL_ROUNDS):
        if number and time.perf_counter() > end:
            break
        for name, call in engines.items():
            began = time.perf_counter()
            call(images)
            took[name].append(time.perf_counter() - began)
    return {name: len(images) / statistics.median(seconds) for name, seconds in took.items()}


def _own_engine(classifier: Run | Exported) -> str:
    """The engine that computes its logits by default."""
    return "onnxruntime" if isinstance(classifier, Exported) and classifier.about["format"] == "onnx" else "jax"


def _dtype(classifier: Run | Exported) -> str:
    """The type that the network computes in: float32 for exported files and for networks without the field."""
    dtype = getattr(classifier.model, "dtype", None) if isinstance(classifier, Run) else None
    return jnp.dtype(jnp.float32 if dtype is None else dtype).name


def _graph(classifier: Run | Exported) -> bytes:
    """The network in ONNX, for images as they are stored or as an exported file expects them.

    Raises:
      UserError: it cannot be written as ONNX, or a file cannot be read.
    """
    if isinstance(classifier, Exported):
        return classifier.read()
    try:
        return run_as_onnx(classifier)
    except UserError:
        raise
    except Exception as error:  # a user's own network may raise anything for a batch of unknown size
        raise UserError(f"ONNX export failed: {_in_short(error)}") from error


def _in_short(error: Exception) -> str:
    """Another library's error: its type, and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _make(classifier: Run | Exported, engine: str, graph: bytes) -> Run | Exported:
    """The network with that engine computing its logits.

    Raises:
      UserError: it is not installed, or cannot run this network, or not in its type on this processor.
    """
    try:
        call = ENGINES[engine](graph, _dtype(classifier))
    except UserError:
        raise
    except Exception as error:  # each engine has its own errors
        raise UserError(f"engine={engine} cannot run this network: {_in_short(error)}") from error
    return dataclasses.replace(classifier, engine=call)


def _check(engine: str, made: Predictor, expected: np.ndarray, images: np.ndarray, dtype: str) -> None:
    """Raises UserError if its logits differ from the expected ones, for all images or for a single one."""
    for number in sorted({1, len(images)}):
        try:
            found = made.logits(images[:number])
        except Exception as error:  # each engine has its own errors
            raise UserError(f"engine={engine} cannot run this network: {_in_short(error)}") from error
        wanted = expected[:number]
        if found.shape != wanted.shape:
            raise UserError(f"engine={engine} returns logits of shape {found.shape}, expected {wanted.shape}")
        difference = float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))
        if not difference <= TOLERANCES[dtype]:
            raise UserError(
                f"engine={engine} is not used: the relative difference of its logits is {difference:.1e}, but at most "
                f"{TOLERANCES[dtype]:g} is allowed in {dtype}"
            )


def _examples(image_shape: tuple[int, int, int], number: int) -> np.ndarray:
    """Deterministic uint8 images: noise, which has no areas of uniform color, and images that consist of them."""
    height, width, channels = image_shape
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (number, *image_shape), np.uint8)
    small = random.integers(0, 256, (number, -(-height // COARSE), -(-width // COARSE), channels), np.uint8)
    coarse = small.repeat(COARSE, axis=1).repeat(COARSE, axis=2)[:, :height, :width]
    images[::2] = coarse[::2]
    return images


@contextlib.contextmanager
def _installed(name: str) -> Iterator[None]:
    """Context for importing a package; raises UserError if it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(
            f"engine={name} needs the package {name}, which is not installed: pip install 'inception-jax[{name}]'"
        ) from None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _onnxruntime(graph: bytes, dtype: str) -> Engine:
    with _installed("onnxruntime"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _cores()  # the default pins threads to cores on which others decode
    options.add_session_config_entry("session.force_spinning_stop", "1")  # frees the cores between batches
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(["logits"], {"images": images})[0], np.float32)


def _openvino(graph: bytes, dtype: str) -> Engine:
    core = import_openvino().Core()
    if dtype == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError("engine=openvino does not support bfloat16 on this processor: choose dtype=float32")
    settings = {
        "INFERENCE_PRECISION_HINT": TYPES["openvino"][dtype],
        "INFERENCE_NUM_THREADS": _cores(),
        "ENABLE_CPU_PINNING": False,  # other threads decode
    }
    model = core.read_model(graph)
    classes = model.output("logits").get_partial_shape()[1].get_length()
    programs, lock = {}, threading.Lock()

    def call(images: np.ndarray) -> np.ndarray:
        if not len(images):  # for which a request returns its previous logits
            return np.zeros((0, classes), np.float32)
        with lock:  # a request has one buffer for its results
            key = images.shape if images.shape in programs or len(programs) < FIXED_SIZES else None
            if key not in programs:
                programs[key] = _openvino_program(core, model, settings, key)
            return programs[key](images)

    return call


def _openvino_program(core: Any, model: Any, settings: dict[str, Any], shape: tuple[int, ...] | None) -> Engine:
    """Compiles the network for images of this shape, or for any number of them if it is None.

    If every core gets several images, each core computes a part of the batch, else all of them each layer.
    """
    model, parts = model.clone(), 1
    if shape is not None:
        parts = _cores() if shape[0] % _cores() == 0 and shape[0] >= IMAGES_EACH * _cores() else 1
        model.reshape({"images": [shape[0] // parts, *shape[1:]]})
    how = {"NUM_STREAMS": parts} if parts > 1 else {"PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(model, "CPU", settings | how)
    requests = [compiled.create_infer_request() for _ in range(parts)]

    def call(images: np.ndarray) -> np.ndarray:
        for request, part in zip(requests, np.split(images, parts), strict=True):
            request.start_async({"images": part}, share_inputs=True)
        for request in requests:
            request.wait()
        return np.concatenate([request.get_tensor("logits").data for request in requests]).astype(
            np.float32, copy=False
        )

    return call


def import_openvino() -> ModuleType:
    """Imports OpenVINO without its telemetry, which would report the import to its makers, from a new process.

    Raises:
      UserError: it is not installed.
    """
    name = "openvino_telemetry"
    known = "openvino" in sys.modules or name in sys.modules
    if not known:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType] (telemetry is optional)
    try:
        with _installed("openvino"):
            import openvino
    finally:
        if not known:
            del sys.modules[name]
    return openvino


ENGINES: Mapping[str, Callable[[bytes, str], Engine]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
