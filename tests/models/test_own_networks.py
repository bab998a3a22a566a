"""Networks from outside the package, in the ways that people write their constructors."""

import sys
import types

import pytest
from jax import numpy as jnp
from networks import module_shapes

from inception_jax.errors import UserError
from inception_jax.models import create_model

MINE = """
from functools import partial, wraps
from flax import linen as nn
from jax import numpy as jnp
from inception_jax.models import SimpleCNN

class Net(nn.Module):
    num_classes: int
    width: int = 4
    dtype: "jnp.dtype | None" = None

    @classmethod
    def wide(cls, num_classes, width=16):
        return cls(num_classes, width)

    @staticmethod
    def narrow(num_classes):
        return Net(num_classes, 2)

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(self.width, (3, 3), dtype=self.dtype)(images)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x.mean((1, 2)))

def plain(num_classes, width=8):
    return Net(num_classes, width)

def anything(**kwargs):
    return Net(**kwargs)

def anything_else(*args, **kwargs):
    kwargs.setdefault("width", 5)
    return anything(*args, **kwargs)

def ours(**kwargs):
    return SimpleCNN(stage_features=(2,), **kwargs)

def named(num_classes, dtype=None, width=7):
    return Net(num_classes, width, dtype)

def decorator(function):
    @wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper

decorated = decorator(plain)
small = lambda num_classes: Net(num_classes, 1)
fixed = partial(Net, width=6)
fixed_anything = partial(anything, width=9)
fixed_function = partial(plain, width=11)
bound = Net.wide

def required(num_classes, width):
    return Net(num_classes, width)

def positional(num_classes, /):
    return Net(num_classes)

def without():
    return Net(10)

def returns_a_dict(num_classes):
    return {"a": num_classes}

def returns_a_class(num_classes):
    return Net

def returns_nothing(num_classes):
    Net(num_classes)

class Plain:
    def __init__(self, num_classes):
        raise AssertionError("it is not a Linen module")

instance = Net(10)
number = 3
"""
LAZY = "def lazy(**kwargs):\n    from mine import Net\n    import flax.linen as nn\n    return Net(**kwargs)\n"
STRANGE = "def strange(**kwargs):\n    raise AssertionError('it speaks of no network')\n"


@pytest.fixture(autouse=True)
def mine(monkeypatch):
    """A user's modules, without files."""
    for name, text in (("mine", MINE), ("lazy", LAZY), ("strange", STRANGE)):
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(text, vars(module))


@pytest.mark.parametrize(
    ("name", "width"),
    [("Net", 4), ("plain", 8), ("anything", 4), ("anything_else", 5), ("named", 7), ("decorated", 8), ("small", 1),
     ("fixed", 6), ("fixed_anything", 9), ("fixed_function", 11), ("bound", 16), ("Net.wide", 16), ("Net.narrow", 2),
     ("lazy:lazy", 4)],
)  # fmt: skip
def test_a_function_that_makes_a_network_is_one(name, width):
    path = name if ":" in name else f"mine:{name}"
    model = create_model(path, num_classes=3, dtype=jnp.bfloat16, param_dtype=jnp.float32)
    assert (model.num_classes, model.width) == (3, width)
    # What takes anything hands it to its module, whatever fields that has.
    takes_a_dtype = name in ("Net", "named", "fixed") or "anything" in name or "lazy" in name
    assert model.dtype == (jnp.bfloat16 if takes_a_dtype else None)
    assert module_shapes(model, (2, 8, 8, 3))[0].shape == (2, 3)


@pytest.mark.parametrize("name", ["Net", "plain", "anything", "named", "decorated", "bound", "Net.wide", "lazy:lazy"])
@pytest.mark.parametrize("width", [12, 13])
def test_its_options_are_the_functions(name, width):
    path = name if ":" in name else f"mine:{name}"
    assert create_model(path, num_classes=3, width=width).width == width


def test_one_that_hands_on_what_it_takes_computes_in_the_types_that_are_asked_for():
    model = create_model("mine:ours", num_classes=3, dtype=jnp.bfloat16, param_dtype=jnp.float64)
    assert (model.dtype, model.param_dtype, model.stage_features) == (jnp.bfloat16, jnp.float64, (2,))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mine:required", {}, "model 'mine:required' cannot be made: missing a required argument: 'width'"),
        ("mine:positional", {}, "model 'mine:positional' cannot be made"),
        ("mine:without", {}, "or a function that takes num_classes and returns such a module"),
        ("mine:returns_a_dict", {}, "it returns dict, not a Linen module"),
        ("mine:returns_a_class", {}, "not a Linen module"),
        ("mine:returns_nothing", {}, "it returns NoneType, not a Linen module"),
        ("mine:Plain", {}, "model 'mine:Plain' is not a network"),
        ("mine:instance", {}, "model 'mine:instance' is not a network"),
        ("mine:number", {}, "model 'mine:number' is not a network"),
        ("mine:Net.nothing", {}, "unknown model in mine 'Net.nothing'"),
        ("mine:plain", {"wdith": 3}, "unknown option of mine:plain 'wdith'. Did you mean 'width'?"),
        ("mine:small", {"width": 3}, "unknown option of mine:small 'width'"),
        ("mine:fixed", {"width": 3}, "unknown option of mine:fixed 'width'"),
        ("mine:anything", {"wdith": 3}, "unexpected keyword argument 'wdith'"),
        ("mine:Net", {"width": "wide"}, "model.width='wide' is not allowed: mine:Net takes int"),
        ("mine:Net", {"parent": 3}, "unknown option of mine:Net 'parent'"),
        ("googlenet", {"parent": "x"}, "unknown option of googlenet 'parent'"),
        ("strange:strange", {}, "model 'strange:strange' is not a network"),
        ("logging:basicConfig", {"filename": "x"}, "model 'logging:basicConfig' is not a network"),
        ("os:system", {"command": "true"}, "model 'os:system' is not a network"),
    ],
)
def test_what_is_not_a_network_is_reported_in_a_line(name, options, message):
    with pytest.raises(UserError) as error:
        create_model(name, num_classes=3, **options)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_module_that_fails_is_named_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "broken_net.py").write_text("def net(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with pytest.raises(UserError, match="cannot import 'broken_net' \\(SyntaxError: invalid syntax"):
        create_model("broken_net:net", num_classes=3)
