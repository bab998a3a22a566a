"""Configs that nobody would write on purpose: each is refused in one clear line, or computes numbers."""

import inspect
import json
import logging
import math
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import numpy as jnp
from networks import DEEPER

from inception_jax import data, main, train
from inception_jax.config import CHOICES, default_config, field_names, validate
from inception_jax.data import images, order, splits
from inception_jax.distributed import sharding
from inception_jax.errors import UserError
from inception_jax.experiment import Experiment, Inputs, build_model
from inception_jax.models import MODELS, list_models
from inception_jax.models.folding import inference_variables
from inception_jax.runs import dataset, folder
from inception_jax.steps import schedules
from inception_jax.train.initial import load_initial, with_options_of_weights

fuzz = partial(settings, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))

SMALL = {"model.name": "simple_cnn", "model.stage_features": (4, 8), "num_devices": 1}
# Of every type, values that many fields take, and values that few or none do.
USUAL = {
    bool: (True, False),
    int: (0, 1, 2, 3, 8, 64),
    float: (0.0, 0.001, 0.1, 0.5, 0.9, 1.0, 2.0),
    str: ("none", "auto", "batch", "small"),
    tuple: ((), (0.5,), (0.08, 1.0), (0.5, 0.5, 0.5), (1.5, 3), ("validation", "test"), ("test",)),
}
ODD = {
    bool: (0, "yes", None),
    int: (-1, 7, 33, 1000, 10**6, 2**31, 10**30, True, 2.5, "three", None),
    float: (-0.1, 15, 1e-7, 1e-60, 0.99999999, 1e9, 1e38, 1e300, math.nan, math.inf, -math.inf, True, "much", None),
    str: ("", "nothing", ":", ":x", ".:x", "a b:c", "os:path", "os:getcwd", "math:sqrt", "two\nlines", "\0", 3, None),
    tuple: (
        (1,), (1.0, 0.08), (1e-30, 1e-30), (0, 0), (-1.0, 2), (math.nan,), (math.inf, math.inf), (1e-60, 1e300),
        (10**30,), (3, 1, 3), (0.5,) * 40, ("x",), ("test",) * 40, ("*",), (("test",),), (None,), ({},), "test", 5,
        [0.5, 1.0], None,
    ),
}  # fmt: skip
# What is to be tried of single fields, the options of networks among them, beside that.
OWN = {
    "batch_size": (1, 7, 100, 1617),
    "data.augment.aspect_ratio": ((1, 1), (100, 100), (1e-3, 1e3)),
    "data.augment.random_resized_crop": ((0.08, 1.0), (1.0, 1.0), (1e-9, 1e-9)),
    "data.channels": (1, 3),
    "data.image_size": (1, 2, 5, 9, 17, 32),
    "data.splits.train": ("train[:80%]", "train[3:70]", "train+test", "train[:0]", "train[9:3]", "tset", "train[", "+"),
    "data.splits.validation": ("test", "", "train[80%:]", "train[:1%]", "train[100%:]"),
    "evaluate.watch": ("validation_loss", "test_top1"),
    "init_from": ("torchvision", "torchvision:googlenet", "no/such/run"),
    "model.initializer": ("paper", "glorot_uniform"),
    "model.name": ("simple_cnn", "googlenet_", "resnet18:x"),
    "model.norm_epsilon": (1e-3, 0.0, -1.0, 1e-60, math.nan, math.inf, "small"),
    "model.num_classes": (5,),
    "model.param_dtype": ("float16",),
    "model.stage_convolutions": ((2, 1), (1,), (0, 2), ("a",), 2),
    "model.stage_features": ((), (3,), (0,), (-4, 8), (2.5,), ("a",), 16, None, (4, 4, 4, 4, 4)),
    "model.train": (True,),
    "optimizer.weight_decay_layers": (("fc",), ("conv*", "fc"), ("no_such",)),
    "schedule.boundaries": ((60, 120), (0.5, 0.5), (3, 1)),
    "schedule.metric": ("validation_loss", "validation_top1"),
    "seed": (2**32 - 1, 2**32, 2**63),
} | {path: (*names, names[0].upper()) for path, names in CHOICES.items()}
# What is typed where a number or a name belongs.
TEXTS = (
    "", " ", "nan", "-inf", "1e400", "9" * 5000, "0x10", "1_000", "None", "(", "(1,", "()", "(,)", "1,2", "[]", "{}",
    "'", '"', "\n", "true", "maybe", "train[:90%", "lambda: 0", "=", "--config", "(" * 300, "0.5, x", "ä",
)  # fmt: skip


def section_of(config, path):
    """The section of a config that a field is in, and the field's name there."""
    *sections, name = path.split(".")
    for section in sections:
        config = config[section]
    return config, name


def candidates():
    """For every field there is, new ones included: values that are probably allowed, and such that are probably not."""
    config = default_config()
    for path in sorted({*field_names(config), *OWN}):
        section, name = section_of(config, path)
        kind = section.get_type(name) if name in section else None
        usual, odd = [*OWN.get(path, ())], [*ODD.get(kind, ())]
        (odd if path in CHOICES else usual).extend(USUAL.get(kind, ()))
        yield path, (usual, odd)


FIELDS = dict(candidates())


@st.composite
def changes(draw):
    """One to five fields and what they are set to, every second time one of them to something odd."""
    random = draw(st.randoms(use_true_random=True))  # as it is seeded, all examples differ
    paths = random.sample(sorted(FIELDS), random.randint(1, 5))
    chosen = {path: random.choice(FIELDS[path][0]) for path in paths}
    odd = FIELDS[paths[0]][1]
    if odd and random.random() < 0.5:
        chosen[paths[0]] = random.choice(odd)
    return chosen


@st.composite
def arguments(draw):
    """The same, as they are typed, now and then with something that is no value."""
    random = draw(st.randoms(use_true_random=True))
    fields = {path: str(value) for path, value in draw(changes()).items()}
    if random.random() < 0.4:
        fields[random.choice([*FIELDS, "model", "data.augment", "modle.name", "x y", "", "."])] = random.choice(TEXTS)
    return [f"--config.{path}={value}" for path, value in fields.items()]


def changed(fields):
    config = default_config()
    config.unlock()
    with config.ignore_type():  # as a person can, too
        for path, value in fields.items():
            section, name = section_of(config, path)
            section[name] = value
    config.lock()
    return config


def compute(config, image_shape=(8, 8, 1), classes=10, sizes=(("train", 1617), ("test", 180))):
    """What a run computes, as shapes: network, new state, training step, evaluation step; and its rates, as numbers."""
    validate(config)
    if not data.is_encoded(config.data.name):
        dataset.load_data(config)
    size = config.data.image_size
    form = images.Format(size, config.data.channels or image_shape[-1], pad=config.data.pad)
    image_shape = (*((size, size) if size else (side + 2 * form.pad for side in image_shape[:2])), form.channels)
    parts = splits.resolve_all(dict(config.data.splits), dict(sizes))
    examples = sum(part.stop - part.start for part in parts["train"])
    try:
        mesh = sharding.make_mesh(config.num_devices)
        sharding.check_divides(mesh, config.batch_size // config.accumulation_steps, "batch_size")
        steps_per_epoch = order.steps_per_epoch(examples, config.batch_size)
        order.batch_indices(config.seed, 0, num_examples=examples, batch_size=config.batch_size)
        config = with_options_of_weights(config, classes)
        key = jax.random.key(config.seed)
        if config.init_from and not config.init_from.startswith("torchvision"):  # which would be fetched
            load_initial(config.init_from, build_model(config, classes), image_shape, key)
        mean, std = (value or (0.5,) * image_shape[-1] for value in (config.data.mean, config.data.std))
        inputs = Inputs(tuple(map(str, range(classes))), image_shape, mean, std)
        computed = Experiment.of(config, inputs, steps_per_epoch)
        state = jax.eval_shape(computed.initial_state, key)
        new, loss = jax.eval_shape(computed.train_step, state, *batch(config.batch_size, image_shape), key)
        shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state, new)]
        assert shapes[0] == shapes[1]
        assert loss.shape == ()
        variables = jax.eval_shape(partial(inference_variables, computed.model), state.variables)
        size = config.evaluate.batch_size or config.batch_size
        mask = jax.ShapeDtypeStruct((size,), bool)
        sums = jax.eval_shape(computed.eval_step, variables, *batch(size, image_shape), mask)
        assert sums.keys() == state.metrics.keys()
        assert_rates_are_numbers(config, computed.schedule, computed.total_steps)
        assert_nothing_moves_without_gradients(computed.optimizer, list(state.params))
    finally:
        jax.config.update("jax_enable_x64", False)


def batch(size, image_shape):
    return jax.ShapeDtypeStruct((size, *image_shape), np.uint8), jax.ShapeDtypeStruct((size,), np.int32)


def assert_rates_are_numbers(config, schedule, total_steps):
    rates = np.array([schedule(step) for step in {0, 1, total_steps // 2, total_steps - 1}])
    assert np.isfinite(rates).all()
    assert (rates >= 0).all()
    if config.schedule.name == "plateau":
        fields = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "learning_rate")
        state = schedules.init_plateau(config.schedule.mode)
        for metric in (0.9, 0.5, math.nan, 0.5):
            options = {field: config.schedule[field] for field in fields}
            state = schedules.plateau_update(state, metric, min_scale=0.0, **options)
            assert 0 < state.scale <= 1
        assert state.best in (0.5, 0.9)


def assert_nothing_moves_without_gradients(optimizer, submodules):
    """Where parameters and gradients are 0, all that rates, decays and averages make of it is 0, or not a number."""
    params = {name: {"kernel": jnp.zeros(2)} for name in submodules}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(params, state, params)
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))


def refusal(function, *words):
    """The one line in which a mistake is answered, or None. One of the words stands in it."""
    try:
        function()
    except UserError as error:
        message = str(error)
        assert len(message.splitlines()) == 1
        assert any(word in message for word in words), message
        return message
    return None


def names(fields):
    """The words of which a message about the fields has one: parts of their names, or what they are of."""
    others = {"data.image_size": ["images"], "data.splits.train": ["split"], "init_from": ["weights", "torchvision"]}
    return [word for path in fields for word in [*path.replace("splits", "split").split("."), *others.get(path, ())]]


@pytest.mark.parametrize("examples", [60, pytest.param(250, marks=pytest.mark.slow)])
def test_changed_configs_compute_or_are_refused(examples):
    @fuzz(max_examples=examples)
    @given(changes())
    def check(fields):
        network = {} if "model.name" in fields else SMALL
        refusal(lambda: compute(changed({"num_devices": 1, **network, **fields})), *names(fields))

    check()


REFUSED = [
    ({"batch_size": True}, "batch_size=True is not allowed: it must be a whole number"),
    (
        {"num_epochs": 10**9},
        "num_epochs=1000000000 is not allowed: an epoch has 11 steps, so it must be at most 195225786",
    ),
    ({"schedule.learning_rate": math.nan}, "schedule.learning_rate=nan is not allowed: numbers must be 0, or from"),
    ({"schedule.warmup_epochs": 1e9}, "warmup_epochs=1000000000.0 is not allowed: an epoch has 11 steps"),
    ({"schedule.boundaries": (0, 3)}, "schedule.boundaries=(0, 3) is not allowed: it must be numbers above 0"),
    ({"schedule.name": "step", "schedule.factor": 1e30, "schedule.boundaries": (1, 2)}, "factor=1e+30 is not allowed"),
    ({"schedule.name": "step", "schedule.every_epochs": 0.1, "num_epochs": 10**6}, "10000000 reductions"),
    ({"schedule.name": "plateau", "schedule.factor": 1.0}, "schedule.name='plateau': it must be less than 1"),
    ({"schedule.name": "plateau", "schedule.mode": "max"}, "schedule.metric='validation_loss': it must be 'min'"),
    ({"evaluate.watch": "validation_loss"}, "evaluate.watch='validation_loss': it must be 'min'"),
    ({"evaluate.splits": (), "evaluate.early_stopping_patience": 3}, "evaluate.early_stopping_patience needs a split"),
    ({"optimizer.epsilon": 0.0}, "optimizer.epsilon=0.0 is not allowed: it must be more than 0"),
    ({"optimizer.beta2": 0.99999999}, "optimizer.beta2=0.99999999 is not allowed: it must be from 0 to 0.9999999"),
    ({"data.splits.train": ""}, "data.splits.train='' is not allowed: it must be a part of the data"),
    (
        {"data.augment.pad_and_crop": 8},
        "pad_and_crop=8 is not allowed for images of 8x8 pixels: it must be from 0 to 7",
    ),
    ({"data.augment.cutout": 16}, "cutout=16 is not allowed for images of 8x8 pixels: it must be from 0 to 14"),
    ({"model.dropout_rate": 1.0}, "model.dropout_rate=1.0 is not allowed: it must be 0 or more and less than 1"),
    ({"model.name": "googlenet", "model.aux_heads": True, "model.aux_dropout_rate": 2.0}, "dropout_rate=2.0 is not"),
    ({"model.norm_epsilon": {}}, "model.norm_epsilon={} is not allowed: simple_cnn takes float"),
    ({"model.norm_epsilon": -1.0}, "norm_epsilon=-1.0 is not allowed: it must be from 1e-12 to 1"),
    ({"model.stage_features": ("a",)}, "model.stage_features=('a',) is not allowed: simple_cnn takes tuple[int, ...]"),
    ({"model.name": "os:getcwd"}, "model 'os:getcwd' is not a network: name a Linen module"),
    ({"data.name": "math:sqrt"}, "data set 'math:sqrt' must be a function that can be called without arguments"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_computes_nonsense_is_refused(fields, message):
    network = {} if "model.name" in fields else SMALL
    assert message in refusal(lambda: compute(changed({"num_devices": 1, **network, **fields})), message)


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "small.py"
    lines = [f"    config.{field} = {value!r}" for field, value in SMALL.items()]
    header = ["from inception_jax.config import default_config", "def get_config():", "    config = default_config()"]
    path.write_text("\n".join([*header, *lines, "    return config", ""]))
    return path


@pytest.mark.parametrize("examples", [40, pytest.param(150, marks=pytest.mark.slow)])
def test_typed_configs_compute_or_are_refused(config_file, examples):
    @fuzz(max_examples=examples)
    @given(arguments())
    def check(argv):
        fields = [argument.removeprefix("--config.").partition("=")[0] for argument in argv]
        refusal(lambda: compute(main.parse_flags([f"--config={config_file}", *argv]).config), *names(fields), "flag")

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if name not in DEEPER])
@fuzz(max_examples=4)
@given(st.randoms(use_true_random=True))
def test_changed_options_of_every_network_compute_or_are_refused(name, random):
    choices = {
        "stem": ("imagenet", "small", "small_pooled"),
        "norm": ("lrn", "batch", "stem", "none"),
        "kernel_5x5": (3, 5, 4),
        "pool_4": (None, 2, 0, 9),
        "aux_heads": (True, False, 1),
        "aux_pool": ("adaptive", "paper"),
        "aux_dropout_rate": (0.7, 1.0),
        "residual": ("identity", "projection"),
        "classifier": ("paper", "mean"),
        "zero_init_residual": (True, "yes"),
        "aux_norm": ("batch", "none", "lrn"),
        "factorized_7x7": (True, False, "no"),
        "dropout_rate": (0.0, 0.5, 1.0, -0.1),
        "norm_epsilon": (1e-3, 0.0),
        "initializer": ("paper", "normal", "zeros"),
    }
    # All that it has, or one of them and perhaps one that it has not.
    known = [option for option in choices if option in inspect.signature(MODELS[name]).parameters]
    options = random.choice([known, random.sample(known, 1), [*known[:1], random.choice(list(choices))]])
    fields = {f"model.{option}": random.choice(choices[option]) for option in options}
    fields |= {"model.name": name, "data.image_size": random.choice([8, 31, 64, 96]), "batch_size": 8}
    refusal(lambda: compute(changed({"num_devices": 1, **fields}), (8, 8, 3)), *names(fields))


def started(config, folder):
    """What a run of a config ends with: its summary, or one line."""
    try:
        return train.train_and_evaluate(config, folder)
    except (UserError, train.NonFiniteLoss) as error:
        return str(error)


@pytest.mark.slow
def test_ten_configs_that_are_accepted_train_to_the_end_or_end_in_one_line(tmp_path, digits, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logging.getLogger("inception_jax").setLevel(logging.ERROR)
    small = {**SMALL, "model.stage_features": (4,), "num_epochs": 1, "batch_size": 16, "data.directory": str(digits)}
    small |= {
        "data.splits.train": "train[:32]",
        "data.splits.validation": "train[32:64]",
        "data.splits.test": "test[:32]",
    }
    left_out = {*small, "data.image_size", "data.name", "init_from", "profile"}
    found = []

    @fuzz(max_examples=120)
    @given(changes())
    def find(fields):
        fields = {path: value for path, value in fields.items() if path not in left_out}
        config = changed({**small, **fields})
        if len(fields) > 1 and len(found) < 10 and refusal(lambda: compute(config), *names(fields)) is None:
            found.append(config)

    find()
    assert len(found) == 10
    for number, config in enumerate(found):
        end = started(config, tmp_path / str(number))
        assert len(end.splitlines()) == 1 if isinstance(end, str) else end["steps"] == 2


KEPT = default_config().to_json()


@st.composite
def contents(draw):
    """What may stand in a file called config.json: a run's config, cut off or changed, or anything else."""
    random = draw(st.randoms(use_true_random=True))
    kind = random.randrange(4)
    if kind == 0:
        return KEPT[: random.randrange(len(KEPT))].encode()
    if kind == 1:
        kept = json.loads(KEPT)
        for path in random.sample(sorted(field_names(default_config())), 3):
            section, name = section_of(kept, path)
            section[name] = random.choice([None, -1, 1e300, math.nan, "", "x", [], [[1]], {}, {"a": 1}, True])
        return json.dumps(kept).encode()
    if kind == 2:
        kept = json.loads(KEPT)
        name = random.choice([*kept, "items", "get", "a.b", "", "0", "lock", "model.name"])
        kept[name] = random.choice([None, 3, "x", [], {}, {"name": 3}, {"items": {"x.y": 1}}])
        return json.dumps(kept).encode()
    return random.choice([
        b"", b"null", b"[]", b"3", b"{}", b"\xff\xfe", b"{" * 100_000, b"[" * 100_000, b'{"model": 3}', b"config = 3",
        b'{"name": "package", "version": "1.0"}', b'{"type": "ResNet", "model": {}, "data": [], "checkpoint": 1}',
        b'{"model": {}, "data": {}, "checkpoint": {}}', b'{"model": {"name": NaN}, "data": {}, "checkpoint": {}}',
    ])  # fmt: skip


@fuzz(max_examples=200)
@given(contents())
def test_the_config_that_a_folder_holds_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "config.json"
    path.write_bytes(content)

    def read():
        kept = folder.read_config(path)
        assert set(field_names(kept)) >= set(field_names(default_config()))
        for difference in folder.config_differences(kept, default_config()):
            assert len(difference.splitlines()) == 1

    refusal(read, f"{path} is not a run's config: ")
