"""What training programs write beside a network's tensors, and what a hostile file may take of the memory."""

import argparse
import collections
import copy
import datetime
import enum
import io
import json
import logging
import os
import pathlib
import pickle
import re
import signal
import socket
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.files import regular_file
from inception_jax.weights.files import LEGACY_MAGIC, read_state_dict, write_state_dict
from inception_jax.weights.pickles import BYTES_PER_BYTE

MEMORY = 2**20  # bytes that Python and NumPy may take besides


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")


# Pickles by hand, so that they need no PyTorch: the operations are those of pickle.py.


def part(value):
    """The operations that make a value of Python's; bytes are such operations already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b"}(" + b"".join(part(key) + part(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(part, value)) + b"e"
    return pickle.dumps(value, 2)[2:-1]


def called(name, *arguments):
    """A call of a function or class."""
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode() + b"(" + b"".join(map(part, arguments)) + b"tR"


def tensor(numel=2, key="0", make="torch._utils._rebuild_tensor_v2", kind="torch\nFloatStorage", beside=(False, None)):
    """A tensor of so many numbers, which are the first of the storage."""
    storage = b"(" + part("storage") + f"c{kind}\n".encode() + part(key) + part("cpu") + part(numel) + b"tQ"
    return called(make, storage, 0, (numel,), (1,), *beside)


def zipped(content, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + part(content) + b".")
        for name, data in members.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", data)
    return buffer.getvalue()


def legacy(content, keys=(), numbers=b""):
    head = (LEGACY_MAGIC, 1001, {"protocol_version": 1001, "little_endian": True})
    pickles = [*(pickle.dumps(value, 2) for value in head), b"\x80\x02" + part(content) + b"."]
    return b"".join(pickles) + pickle.dumps(list(keys), 2) + numbers


@pytest.fixture
def read(tmp_path):
    """Reads a file with such a content, whose storage "0" has 1.0 and 2.0."""

    def read(content):
        path = tmp_path / "weights.pth"
        path.write_bytes(content if isinstance(content, bytes) else zipped(content, _0=struct.pack("<2f", 1, 2)))
        return read_state_dict(path)

    return read


NETWORK = {"conv1.weight": tensor(), "conv1.bias": tensor()}
OPTIMIZER = {"state": {0: {"weight": tensor(), "step": tensor()}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
SUBCLASS = b"cmy.library\nState\n)\x81" + part(NETWORK)[1:]  # a class derived from dict: NEWOBJ, then items

FOREIGN = {
    "a namespace": called("argparse.Namespace") + part({"lr": 0.1}) + b"b",
    "a scalar": called("numpy.core.multiarray.scalar", called("numpy.dtype", "f8", 0, 1) + part((3, "<")) + b"b", "\0"),
    "a class": b"cmy.library\nThing\n",
    "an object": b"cmy.library\nThing\n)\x81" + part({"a": tensor()}) + b"b",
    "with keywords": b"\x80\x04cmy.library\nThing\n)" + part({"a": 1}) + b"\x92",
    "a set": b"\x80\x04\x8f(K\x01K\x02\x90",
    "a frozen set": b"\x80\x04(K\x01\x91",
    "bytes": b"C\x03abc",
    "a bytearray": b"\x96" + struct.pack("<Q", 3) + b"abc",
    "a long number": 2**3000,
    "other keys": {None: 1, 1.5: 2, (1, 2): 3, b"cmy.library\nKey\n": 4, 2**100: 5},
    "a dict of another class": called("collections.defaultdict", b"c__builtin__\ndict\n") + b"K\x01K\x02s",
    "what recurses": b"(K\x01K\x020" + b"1N",
    "twice": b"K\x012\x86",
    "a call of os.system": called("os.system", "touch canary"),
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_what_stands_beside_the_tensors_does_not_matter(read, foreign, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    thing = FOREIGN[foreign]
    for content in ({"state_dict": NETWORK, "thing": thing}, {"thing": [thing], "epoch": 3, "state_dict": NETWORK}):
        assert list(read(content)) == list(NETWORK)
    assert list(read({**NETWORK, "thing": thing})) == list(NETWORK)
    assert set(sys.modules) - before <= {"encodings.cp437"}  # of zip files
    assert not (tmp_path / "canary").exists()


FOUND = {
    "state_dict": {"state_dict": NETWORK, "optimizer": OPTIMIZER},
    "net": {"net": NETWORK},
    "params": {"params": NETWORK, "opt": OPTIMIZER},
    "weights": {"epoch": 1, "weights": NETWORK},
    "any name": {"zebra": NETWORK},
    "an average alone": {"state_dict_ema": NETWORK},
    "several levels": {"a": {"b": {"c": {"model": NETWORK}}}},
    "a list": [1, NETWORK],
    "a class derived from dict": {"model": SUBCLASS},
    "twice the same": {"all": b"}(" + part("best") + part(NETWORK) + b"q\x01" + part("model") + b"h\x01u"},
    "beside a number": {"loss": tensor(), "zebra": NETWORK},
    "beside random numbers": {"zebra": NETWORK, "rng": {"cpu": tensor()}},
    "beside optimizers": {
        "zebra": NETWORK,
        "optimizers": [OPTIMIZER, OPTIMIZER],
        "fastai": {"state": [], "hypers": []},
    },
    "beside a sparse tensor": {"zebra": NETWORK, "x": {"weight": called("torch._utils._rebuild_sparse_tensor", 1)}},
    "with an extra state": {**NETWORK, "_extra_state": {"a": tensor()}},
}
OTHER = {"conv1.weight": tensor(1)}
PREFERRED = {
    "an average": ({"state_dict_ema": OTHER, "state_dict": NETWORK}, r"reading state_dict \(2 .*state_dict_ema \(1 te"),
    "torchvision's": (
        {"model_ema": OTHER, "model": NETWORK},
        r"reading model \(2 tensors\); it also contains model_ema",
    ),
    "a callback's": ({"callbacks": {"ema": {"state_dict": OTHER}}, "model": NETWORK}, r"callbacks\.ema\.state_dict"),
    "a name that is not usual": (
        {"zebra": OTHER, "net": NETWORK},
        r"reading net \(2 tensors\); it also contains zebra",
    ),
}


@pytest.mark.parametrize("where", FOUND)
def test_the_dict_of_tensors_is_found(read, where, caplog):
    tensors = read(FOUND[where])
    assert list(tensors) == list(NETWORK)
    np.testing.assert_array_equal(tensors["conv1.bias"], np.float32([1, 2]))
    assert caplog.text == ""


@pytest.mark.parametrize("case", PREFERRED)
def test_of_several_dicts_the_usual_one_is_taken_and_said(read, case, caplog):
    content, message = PREFERRED[case]
    assert list(read(content)) == list(NETWORK)
    ((_, level, text),) = caplog.record_tuples
    assert level == logging.WARNING
    assert re.search(message, text)


@pytest.mark.parametrize(
    "content",
    [
        {"generator": NETWORK, "discriminator": OTHER},
        {"student": NETWORK, "more": {"teacher": OTHER}},
        {"a": {"model": NETWORK}, "b": {"model": OTHER}},
    ],
)
def test_dicts_that_nothing_tells_apart_are_listed(read, content):
    with pytest.raises(UserError, match=r"several dicts of tensors.*: \S+ \(2 tensors\), \S+ \(1 tensor\): in PyTorch"):
        read(content)


def test_an_optimizers_tensors_are_no_networks(read):
    with pytest.raises(UserError, match="does not contain a dict of tensors, but dict"):
        read(OPTIMIZER)


def test_a_whole_network_is_named(read):
    network = b"ctorch.nn.modules.container\nSequential\n)\x81" + part({"_parameters": NETWORK}) + b"b"
    with pytest.raises(UserError, match=r"needs torch\.nn\.modules\.container\.Sequential, .*save only model\."):
        read({"model": network})


UNREADABLE = {
    "quantized": (called("torch._utils._rebuild_qtensor", tensor()), "is a quantized tensor"),
    "sparse": (called("torch._utils._rebuild_sparse_tensor", 1, 2), "is a sparse tensor"),
    "without values": (called("torch._utils._rebuild_meta_tensor_no_storage", 1), "is a tensor without values"),
    "of a class of its own": (
        called("my.library.Tensor", tensor()),
        r"that only my\.library\.Tensor can create",
    ),
    "of an unknown storage": (tensor(kind="torch\nNewStorage"), r"a tensor that only torch\.NewStorage can create"),
    "negated": (tensor(beside=(False, None, {"neg": True})), "conjugated or negated"),
    "complex": (tensor(1, kind="torch\nComplexFloatStorage"), r"has complex numbers \(complex64\)"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_only_a_tensor_that_needs_more_is_refused(read, kind):
    value, message = UNREADABLE[kind]
    for content in (value, called("torch._utils._rebuild_parameter", value, True, None)):
        assert list(read({"state_dict": NETWORK, "thing": {"a": content, "b": [content]}})) == list(NETWORK)
        with pytest.raises(UserError, match=rf"weights\.pth: conv1\.weight .*{message}") as error:
            read({"conv1.weight": content, "conv1.bias": tensor()})
        assert str(error.value).isprintable()


def test_tensors_in_other_guises_are_read(read):
    parameter = called("torch._utils._rebuild_parameter_with_state", tensor(), True, None, {"a": 1})
    storage = b"(" + part("storage") + b"ctorch\nFloatStorage\n" + part("0") + part("cpu") + part(2) + b"tQ"
    of_class = called(
        "torch._tensor._rebuild_from_type_v2",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"cfastai.torch_core\nTensorBase\n",
        b"(" + storage + part(0) + part((2,)) + part((1,)) + part(False) + b"Nt",
        {},
    )
    device = called("torch._utils._rebuild_device_tensor_from_cpu_tensor", tensor(), b"ctorch\nfloat32\n", "hpu", False)
    tensors = read({"a.weight": parameter, "b.weight": of_class, "c.weight": device})
    for value in tensors.values():
        np.testing.assert_array_equal(value, np.float32([1, 2]))


# The same by PyTorch itself.


class Color(enum.Enum):
    RED = 1


class Derived(collections.OrderedDict):
    pass


def beside(torch):
    """What programs write beside the tensors."""
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for value in net.parameters():  # as after a step, which takes seconds the first time
        optimizer.state[value] = {"step": torch.tensor(1.0), "exp_avg": value.detach(), "exp_avg_sq": value.detach()}
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3])
    return {
        "epoch": 3,
        "optimizer": optimizer.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "lr_scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(lr=0.1, path=pathlib.Path("a"), device=torch.device("cpu"), dtype=torch.float16),
        "metric": np.float64(0.9),
        "history": {"loss": np.arange(3.0), "when": datetime.datetime(2020, 1, 1), "c": 1j, "s": {1, 2}},
        "counts": collections.Counter("abc"),
        "default": collections.defaultdict(list, a=[1]),
        "enum": Color.RED,
        "rng": {"torch": torch.get_rng_state(), "numpy": np.random.RandomState(0).get_state()},
        "sparse": torch.ones(2, 2).to_sparse(),
        "scaled": {"weight": torch.ones(2).to(torch.complex64)},
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zip_format", [True, False])
def test_checkpoints_of_training_programs_are_read(torch, tmp_path, protocol, zip_format):
    net = torch.nn.Sequential(collections.OrderedDict(conv1=torch.nn.Conv2d(3, 4, 3), fc=torch.nn.Linear(4, 2)))
    plain = net.state_dict()
    wrapped = {f"_orig_mod.module.{name}": value for name, value in plain.items()}
    average = torch.optim.swa_utils.AveragedModel(torch.nn.DataParallel(net)).state_dict()
    rest = beside(torch)
    contents = (
        {"state_dict": plain, **rest},
        {"model": Derived(wrapped), **rest},
        {**rest, "ema": average},
        {**rest, "checkpoint": {"net": {f"model.backbone.{name}": value for name, value in plain.items()}}},
    )
    for content in contents:
        torch.save(content, tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zip_format)
        read = read_state_dict(tmp_path / "a.pth")
        assert list(read) == list(plain)
        for name, value in plain.items():
            np.testing.assert_array_equal(read[name], value.numpy())


@pytest.mark.parametrize("zip_format", [True, False])
def test_what_pytorch_makes_of_tensors_is_read_or_named(torch, tmp_path, zip_format):
    path = tmp_path / "a.pth"

    def read(value):
        torch.save({"a.weight": value}, path, _use_new_zipfile_serialization=zip_format)
        return read_state_dict(path)["a.weight"]

    numbers = torch.tensor([[0.5, 1.0], [2.0, -4.0]])
    for dtype in ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64"):
        expected = numbers.abs().to(getattr(torch, dtype))
        found = read(expected)
        assert found.dtype.name == dtype
        np.testing.assert_array_equal(found.astype(np.float64), expected.double().numpy())
    with_attribute = numbers.clone()
    with_attribute.note = "a"
    parameter = torch.nn.Parameter(numbers)
    parameter.note = "b"
    for value in (with_attribute, parameter):
        np.testing.assert_array_equal(read(value), numbers.numpy())
    unreadable = {
        "a sparse tensor": numbers.to_sparse(),
        "a tensor without values": numbers.to("meta"),
        "complex numbers": numbers.to(torch.complex64),
        "negated": numbers.to(torch.complex64).conj().imag,
    }
    for message, value in unreadable.items():
        with pytest.raises(UserError, match=f"a.pth: a.weight .*{message}"):
            read(value)


def test_float8_of_safetensors_is_read_and_other_types_are_named(torch, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    values = torch.tensor([0.5, 1, 448.0])
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16):
        save_file({"a": values.to(dtype)}, tmp_path / "a.safetensors")
        read = read_state_dict(tmp_path / "a.safetensors")["a"]
        np.testing.assert_array_equal(read.astype(np.float32), values.to(dtype).float().numpy())
    save_file({"a": values.to(torch.complex64)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors: a has complex numbers \(complex64\)"):
        read_state_dict(tmp_path / "a.safetensors")


def safetensors_file(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_types_that_are_not_known_are_named(read):
    with pytest.raises(UserError, match=r"a has type F4, which is not supported; supported: F64, .*F8_E4M3"):
        read(safetensors_file({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"a"))


# Prefixes.


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("module.", ()),
        ("_orig_mod.module.", ()),
        ("module._orig_mod.", ()),
        ("model.net.backbone.encoder.", ()),
        ("module.module.module.", ("n_averaged",)),
        ("model.", ("n_averaged", "step")),
        ("network._fsdp_wrapped_module.", ()),
    ],
)
def test_prefixes_go_off_in_any_order_and_number(tmp_path, prefix, others):
    tensors = {"conv1.weight": np.ones((2, 3), np.float32), "bn.num_batches_tracked": np.int64(3)}
    content = {f"{prefix}{name}": value for name, value in tensors.items()} | dict.fromkeys(others, np.int64(7))
    write_state_dict(tmp_path / "a.safetensors", content)
    assert sorted(read_state_dict(tmp_path / "a.safetensors")) == sorted(tensors)


def test_wrapped_parts_lose_their_wrapper(tmp_path):
    names = {"features.module.0.weight": "features.0.weight", "fc._orig_mod.bias": "fc.bias", "module": "module"}
    write_state_dict(tmp_path / "a.safetensors", {name: np.ones(2, np.float32) for name in names})
    assert sorted(read_state_dict(tmp_path / "a.safetensors")) == sorted(names.values())


@pytest.mark.parametrize(
    "names",
    [
        ("model.a", "b"),  # of one part only
        ("module.a", "model.b"),
        ("features.module.0.a", "features.0.a"),  # two would become one
        ("models.a", "models.b"),
    ],
)
def test_what_is_no_prefix_of_all_stays(tmp_path, names):
    write_state_dict(tmp_path / "a.safetensors", {name: np.ones(2, np.float32) for name in names})
    assert sorted(read_state_dict(tmp_path / "a.safetensors")) == sorted(names)


# Memory and time.


def ballast(size):
    """A text that is thrown away: what a file may ask for grows with its size."""
    return b"X" + struct.pack("<I", size) + b"a" * size + b"0"


def many_views(axes, count=2000):
    """Tensors, each by a few bytes: arguments that the memo has."""
    shape = b"(" + b"K\x01" * axes + b"tq\x05"
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x02tQq\x01"
    head = b"ctorch._utils\n_rebuild_tensor_v2\nq\x00" + storage + shape + b"(h\x01K\x00h\x05h\x05NNtq\x06"
    return head + b"}(" + b"".join(b"U\x04%04dh\x00h\x06R" % number for number in range(count)) + b"u"


N = 10_000
A_LIST = b"](" + b"N" * N + b"eq\x01"
A_NUMBER = b"\x8b" + struct.pack("<i", N) + b"\x7f" * N + b"q\x01"
A_TEXT = b"X" + struct.pack("<I", N) + b"a" * N + b"q\x01"
AMPLIFIED = {
    "shapes of a list": A_LIST + b"\x85q\x03ctorch\nSize\nq\x02](" + b"h\x02h\x03R" * 3000 + b"e",
    "dicts of a list": b"](U\x01aK\x01\x86q\x07"
    + b"h\x07" * N
    + b"e\x85q\x01ccollections\nOrderedDict\nq\x02]("
    + b"h\x02h\x01R" * 3000
    + b"e",
    "arguments of a list": A_LIST + b"ctorch._utils\n_rebuild_parameter\nq\x02](" + b"h\x02h\x01R" * 3000 + b"e",
    "arguments of what is foreign": b"(" + b"N" * N + b"tq\x01cos\nsystem\nq\x02](" + b"h\x02h\x01R" * 3000 + b"e",
    "lists": b"](" + b"]" * N + b"e",
    "dicts": b"](" + b"}" * N + b"e",
    "dicts of one": b"](" + b"}K\x01Ns" * (N // 2) + b"e",
    "foreign objects": b"cm\nx\nq\x01](" + b"h\x01)R" * (N // 2) + b"e",
    "foreign dicts": b"cm\nx\nq\x01](" + b"h\x01)RK\x01Ns" * (N // 4) + b"e",
    "tuples in tuples": b")" + b"\x85" * N,
    "lists in lists": b"]" * N + b"a" * (N - 1),
    "lists in lists, with ballast": ballast(2 * N) + b"]" * N + b"a" * (N - 1),
    "lists, with ballast": ballast(2 * N) + b"](" + b"]" * N + b"e",
    "lists of one, with ballast": ballast(2 * N) + b"](" + b"]Na" * N + b"e",
    "sets": b"](" + b"\x8f" * N + b"e",
    "marks": b"(" * N + b"N" + b"1" * N + b"N",
    "memo": b"\x80\x04N" + b"\x94" * N,
    "memo with gaps": b"\x80\x04N" + b"".join(b"r" + struct.pack("<I", 5000 * number) for number in range(1, 1000)),
    "doubled": b"\x80\x04N" + b"2" * N,
    "long names": A_TEXT + b"](" + b"h\x01h\x01\x93" * 3000 + b"e",
    "names": b"](" + b"".join(b"c%s\n%06d\n" % (b"a" * 150, number) for number in range(500)) + b"e",
    "long keys": A_TEXT + b"}(" + b"h\x01N" * 3000 + b"u",
    "long numbers as keys": A_NUMBER + b"}(" + b"h\x01N" * 3000 + b"u",
    "a long number as a shape": A_NUMBER + tensor() + b"0" + called("torch.Size", b"(h\x01t"),
    "views of one axis": many_views(1),
    "views of many axes": many_views(60),
    "views of many axes, with ballast": ballast(3 * N) + many_views(60),
    "a long shape": b"("
    + b"K\x01" * N
    + b"tq\x05"
    + called("torch._utils._rebuild_tensor_v2", 0, 0, b"h\x05", b"h\x05"),
    "keys that double": b")" + b"q\x00h\x00\x86" * 3000 + b"}h\x00Ns",
}


def read_within(path, limit):
    """Reads a file and returns the error, if it is one; the peak of memory may not be above the limit."""
    tracemalloc.start()
    try:
        read_state_dict(path)
    except UserError as error:
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= limit, f"{path} took {peak} bytes, {peak / path.stat().st_size:.1f} for each of its own"


@pytest.mark.parametrize("name", AMPLIFIED)
@pytest.mark.parametrize("pack", [zipped, legacy])
def test_the_memory_that_a_pickle_takes_is_bounded(tmp_path, name, pack):
    path = tmp_path / "weights.pth"
    path.write_bytes(pack(AMPLIFIED[name]))
    read_within(path, (BYTES_PER_BYTE + 3) * path.stat().st_size + MEMORY)


def overlapping_members(count=50, size=100_000):
    """A zip whose members are one and the same place of the file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        content = {f"{number:03d}": tensor(size // 4, f"{number:03d}") for number in range(count)}
        archive.writestr("archive/data.pkl", b"\x80\x02" + part(content) + b".")
        archive.writestr("archive/data/000", bytes(size))
        info = archive.getinfo("archive/data/000")
        for number in range(1, count):
            other = copy.copy(info)
            other.filename = f"archive/data/{number:03d}"
            archive.filelist.append(other)
    return buffer.getvalue()


def overlapping_storages(count=50, size=100_000):
    """The older format, with storages that are empty as the file says, and all the rest of it as the tensors say."""
    keys = [f"{number:03d}" for number in range(count)]
    return legacy({key: tensor(size // 4, key) for key in keys}, keys, bytes(8) * count + bytes(size))


def a_member_of_gigabytes():
    """Of more bytes than the file, as it is packed."""
    sizes = struct.pack("<II", 8, 8)
    content = zipped(NETWORK, _0=bytes(8))
    assert content.count(sizes) == 2  # before the member, and in the list at the end
    return content.replace(sizes, struct.pack("<II", 2**31, 8))


REPEATED = {
    "a member of gigabytes": a_member_of_gigabytes(),
    "members that overlap": overlapping_members(),
    "storages that overlap": overlapping_storages(),
    "a header of lists": safetensors_file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":[' + b"[]," * N + b"1]}}", bytes(4)
    ),
    "a header without end": safetensors_file(b'{"a":' * 20_000 + b"1" + b"}" * 20_000, bytes(8)),
    "a header of brackets": safetensors_file(b'{"a":' + b"[" * N + b"]" * N + b"}", bytes(8)),
    "a shape without end": safetensors_file(
        b'{"a":{"dtype":"F32","shape":[' + b"1," * N + b'1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "a header of gigabytes": struct.pack("<Q", 2**40) + b"{" + bytes(100),
    "a tensor of gigabytes": safetensors_file({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "tensors that overlap": safetensors_file(
        {str(number): {"dtype": "U8", "shape": [N], "data_offsets": [0, N]} for number in range(50)}, bytes(N)
    ),
}


@pytest.mark.parametrize("name", REPEATED)
def test_the_numbers_are_read_once(tmp_path, name):
    path = tmp_path / "weights.pth"
    path.write_bytes(REPEATED[name])
    error = read_within(path, 64 * path.stat().st_size if "header of" in name else 5 * path.stat().st_size + MEMORY)
    assert error or name == "a header of lists"


def test_dense_pickles_of_python_are_within_the_bound(read):
    """Many small dicts, lists and numbers, memoised as pickle.py does it."""
    history = [{"a": number % 200, "b": [number % 200], "c": (number / 7,)} for number in range(3000)]
    for protocol in (2, 4, 5):
        dense = [history, [{} for _ in range(5000)], [[] for _ in range(5000)], [{1: 2} for _ in range(5000)]]
        content = part({"state_dict": NETWORK})[:-1] + part("h") + pickle.dumps(dense, protocol)[:-1]
        assert list(read(zipped(content + b"u", _0=bytes(8)))) == list(NETWORK)


# Not regular files.


@pytest.fixture
def no_hang():
    def stop(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 20)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def special_files(folder):
    os.mkfifo(folder / "pipe.pth")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket.pth"))
    (folder / "link.pth").symlink_to("/dev/zero")
    return {
        folder / "pipe.pth": "is a named pipe, not a regular file",
        folder / "socket.pth": "is a socket, not a regular file",
        folder / "link.pth": "is a device, not a regular file",
        pathlib.Path("/dev/null"): "is a device, not a regular file",
    }


def test_pipes_and_devices_are_refused(tmp_path, monkeypatch, no_hang):
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    for path, message in special_files(pathlib.Path()).items():
        for reader in (read_state_dict, regular_file):
            with pytest.raises(UserError, match=message):
                reader(path)
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read_state_dict(tmp_path)


# Damage of all kinds.


OPERATIONS = b"()]}\x85\x86\x87\x8f2RQ\x81besu\x94hqjN0190."


def mutated(content, generator):
    """The content with a few bytes changed, left out, repeated, or exchanged for operations of pickles."""
    content = bytearray(content)
    for _ in range(generator.integers(1, 6)):
        place, length = int(generator.integers(len(content))), int(generator.integers(1, 9))
        kind = generator.integers(5)
        if kind == 0:
            content[place] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            del content[place : place + length]
        elif kind == 2:
            content[place:place] = content[place : place + length] * int(generator.integers(1, 50))
        elif kind == 3:
            content[place] = OPERATIONS[int(generator.integers(len(OPERATIONS)))]
        else:
            content[place : place + length] = generator.bytes(length)
        if not content:
            return b"\x80"
    return bytes(content)


def whole_files():
    """A file of each kind, small, and open to mutations of the pickle in it."""
    content = {"state_dict": NETWORK, "optimizer": OPTIMIZER, "thing": FOREIGN["a namespace"], "h": [(1, 2.0), "é"]}
    header = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"format": "pt"}}
    pickled = b"\x80\x02" + part(content) + b"."
    yield lambda change: legacy(change(pickled)[2:-1], ["0"], struct.pack("<Q2f", 2, 1, 2))
    yield lambda change: zipped(change(pickled)[2:-1], _0=struct.pack("<2f", 1, 2))
    yield lambda change: change(zipped(content, _0=struct.pack("<2f", 1, 2)))
    yield lambda change: change(safetensors_file(header, bytes(8)))
    yield lambda change: safetensors_file(change(json.dumps(header).encode()), bytes(8))


def fuzz(path, rounds, files):
    generator = np.random.default_rng(0)
    read = 0
    for _ in range(rounds):
        for file in files:
            path.write_bytes(file(lambda content: mutated(content, generator)))
            read += read_within(path, BYTES_PER_BYTE * path.stat().st_size + MEMORY) is None
    return read


def test_mutated_files_are_read_or_refused(tmp_path, no_hang):
    files = list(whole_files())
    for file in files:
        assert read_within_bytes(tmp_path, file(lambda content: content)) is None
    assert fuzz(tmp_path / "weights.pth", 60, files) > 0


def read_within_bytes(folder, content):
    (folder / "whole.pth").write_bytes(content)
    return read_within(folder / "whole.pth", BYTES_PER_BYTE * len(content) + MEMORY)


@pytest.mark.slow
def test_mutated_files_of_pytorch_are_read_or_refused(torch, tmp_path):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    files = list(whole_files())
    for protocol in (2, 4):
        for zip_format in (True, False):
            buffer = io.BytesIO()
            content = {"model": net, **beside(torch)}
            torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=zip_format)
            whole = buffer.getvalue()
            files.append(lambda change, whole=whole: change(whole))
    assert fuzz(tmp_path / "weights.pth", 300, files) > 0
