"""Files of weights against PyTorch's own, and against people who mean harm."""

import collections
import io
import os
import pickle
import struct
import subprocess
import zipfile

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.weights.files import LEGACY_MAGIC, read_state_dict, write_state_dict

DTYPES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")


def assert_equal(read, tensors):
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(read[name].astype(np.float64), tensor.detach().double().numpy(), err_msg=name)


@pytest.fixture(params=["zip", "legacy"])
def save(request, torch, tmp_path):
    def save(content, name="weights.pth"):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=request.param == "zip")
        return tmp_path / name

    return save


def test_every_type_is_read_as_pytorch_wrote_it(save, torch):
    tensors = {dtype: torch.tensor([[0, 1, 2], [3, 4, 100]]).to(getattr(torch, dtype)) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3)}
    assert_equal(read_state_dict(save(tensors)), tensors)


def test_views_are_read_as_views(save, torch):
    whole = torch.arange(24.0)
    tensors = {
        "whole": whole,
        "part": whole[4:10],
        "transposed": whole.reshape(4, 6).T,
        "every_other": whole.reshape(2, 3, 4)[:, ::2, 1],
        "channels_last": torch.arange(48.0).reshape(2, 3, 2, 4).to(memory_format=torch.channels_last),
    }
    assert_equal(read_state_dict(save(tensors)), tensors)


def test_a_modules_state_dict_is_read(save, torch):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = module.state_dict()  # an OrderedDict with an attribute
    assert_equal(read_state_dict(save(state)), state)
    assert_equal(read_state_dict(save(dict(module.named_parameters()))), dict(module.named_parameters()))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(torch, tmp_path, protocol):
    tensors = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}
    torch.save(tensors, tmp_path / "a.pth", pickle_protocol=protocol)
    assert_equal(read_state_dict(tmp_path / "a.pth"), tensors)


def test_wrappers_and_prefixes_are_taken_off(save, torch):
    tensors = {"a.weight": torch.ones(2), "a.bias": torch.zeros(2)}
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(5)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    assert_equal(read_state_dict(save({"epoch": 3, "state_dict": tensors, "optimizer": momentum})), tensors)
    parallel = {f"module.{name}": tensor for name, tensor in tensors.items()}
    assert_equal(read_state_dict(save({"model": parallel, "best": None, "lr": 1e-3})), tensors)


def test_the_suffix_does_not_matter(save, torch, tmp_path):
    save({"a": torch.ones(2)}, "weights.safetensors")
    assert list(read_state_dict(str(tmp_path / "weights.safetensors"))) == ["a"]


def test_safetensors_are_read_as_pytorch_wrote_them(torch, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {dtype: torch.tensor([[0, 1, 2], [3, 4, 100]]).to(getattr(torch, dtype)) for dtype in sorted(DTYPES)}
    safetensors.save_file(tensors, tmp_path / "weights.pth")
    read = read_state_dict(tmp_path / "weights.pth")
    assert_equal({name: read[name] for name in tensors}, tensors)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_what_is_written_is_read_by_pytorch(torch, tmp_path, suffix):
    tensors = {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1), "n": np.int64(0)}
    path = tmp_path / f"weights{suffix}"
    write_state_dict(path, tensors)
    write_state_dict(path, tensors)  # over the one that is there
    if suffix == ".safetensors":
        read = pytest.importorskip("safetensors.torch").load_file(path)
    else:
        read = torch.load(path, weights_only=True)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name].numpy(), tensor)
        np.testing.assert_array_equal(read_state_dict(path)[name], tensor)
    assert os.listdir(tmp_path) == [path.name]


def test_where_weights_cannot_be_written_it_is_said(tmp_path, monkeypatch):
    tensors = {"a": np.ones(2, np.float32)}
    with pytest.raises(UserError, match=r"must end in \.safetensors, \.pth or \.pt"):
        write_state_dict(tmp_path / "weights.npz", tensors)
    with pytest.raises(UserError, match=r"cannot write .*: No such file"):
        write_state_dict(tmp_path / "missing" / "weights.safetensors", tensors)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="written by PyTorch, which is not installed"):
        write_state_dict(tmp_path / "weights.pth", tensors)
    assert not any(tmp_path.iterdir())


# Files that are something else, or not whole.


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}" if "npy" not in name else name, content)
    return buffer.getvalue()


OTHERS = [
    (b"", "is empty"),
    (b"<!DOCTYPE html>\n<html>404</html>", "is a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
    (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    (b"\x93NUMPY\x01\x00", "is a NumPy array"),
    (zipped(**{"a.npy": b""}), "is a NumPy archive"),
    (zipped(**{"data.pkl": b"", "constants.pkl": b"", "code/a.py": b""}), "is a TorchScript program"),
    (zipped(**{"readme": b""}), "is a zip archive"),
    (b"\x1f\x8b\x08\x00", "is compressed with gzip"),
    (b"\x08\x07\x12\x07pytorch", "is an ONNX model"),
    (b"\xff\xd8\xff\xe0JFIF", "is a JPEG picture"),
    (b"weights" + bytes(250) + b"ustar", "is a tar archive"),
    (b"nonsense", "is not a weights file"),
    (pickle.dumps({"a": 1}, 2), "is a pickle, but not PyTorch's"),
    (struct.pack("<Q", 2) + b"{}" + bytes(9), "is damaged"),
]


@pytest.mark.parametrize(("content", "message"), OTHERS, ids=[message for _, message in OTHERS])
def test_other_files_are_named(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_state_dict(path)
    assert f"{path} {message}" in str(error.value)
    assert message == "is damaged" or "expected a PyTorch state dict (.pth, .pt) or a .safetensors" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*missing\.pth: No such file"):
        read_state_dict(tmp_path / "missing.pth")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read_state_dict(tmp_path)


def test_dicts_without_tensors_are_refused(save):
    for content in ({"a": 1}, [1, 2], {"state_dict": {"a": {"b": 1}}}):
        with pytest.raises(UserError, match="does not contain a dict of tensors"):
            read_state_dict(save(content))


def test_a_file_that_was_cut_off_anywhere_is_damaged(save, torch, tmp_path):
    content = save({"a.weight": torch.ones(5, 3), "a.bias": torch.zeros(7)}).read_bytes()
    path = tmp_path / "cut.pth"
    for size in range(4, len(content) - 1, 7):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"is damaged or truncated \(.*\): get it again|is a pickle, but not"):
            read_state_dict(path)


def test_a_safetensors_file_that_was_cut_off_is_damaged(tmp_path):
    path = tmp_path / "weights.safetensors"
    write_state_dict(path, {"a": np.ones(100, np.float32)})
    content = path.read_bytes()
    for size in (20, len(content) - 300, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"is damaged or truncated|is not a weights file"):
            read_state_dict(path)


def test_flipped_bits_of_a_zip_are_found(save, torch, tmp_path):
    path = save({"a": torch.ones(100)})
    content = bytearray(path.read_bytes())
    if not content.startswith(b"PK"):
        pytest.skip("the older format has no checksums")
    content[content.index(np.ones(100, np.float32).tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read_state_dict(path)


# Files that would do something.


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def legacy(content, protocol=2):
    head = (LEGACY_MAGIC, 1001, {"protocol_version": 1001, "little_endian": True})
    return b"".join(pickle.dumps(part, protocol) for part in (*head, content, []))


def canary(path):
    return f"open({str(path)!r}, 'w').close()"


HOSTILE = {
    "os.system": lambda path: {"a": Call(os.system, f"touch {path}")},
    "subprocess.Popen": lambda path: {"state_dict": [Call(subprocess.Popen, ["touch", str(path)])]},
    "builtins.eval": lambda path: {"a": {"b": (Call(eval, canary(path)),)}},
    "builtins.exec": lambda path: collections.OrderedDict([("a", Call(exec, canary(path)))]),
    "builtins.getattr": lambda path: {"a": Call(getattr, Call(__import__, "os"), "system")},
    "as a key": lambda path: {Call(eval, canary(path)): 1},
    "as the content": lambda path: Call(os.system, f"touch {path}"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("attack", HOSTILE)
@pytest.mark.parametrize("pack", [lambda *a: zipped(**{"data.pkl": pickle.dumps(*a)}), legacy, pickle.dumps])
def test_nothing_in_a_file_is_executed(tmp_path, attack, pack, protocol):
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    path.write_bytes(pack(HOSTILE[attack](canary), protocol))
    with pytest.raises(
        UserError, match=r"needs \w+\.\w+, but only dicts of tensors are|no state dict needs|is not a weights file"
    ):
        read_state_dict(path)
    assert not canary.exists()


# Pickles by hand: the operations are those of pickle.py.
BY_HAND = {
    "a class by NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "an instance by INST": b"(ios\nsystem\nS'true'\n.",
    "an instance by OBJ": b"(cos\nsystem\nS'true'\no.",
    "an extension": b"\x80\x02\x82\x01.",
    "a dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
    "a name with an escape": b"\x80\x04\x8c\x02os\x8c\x08sys\x1b[2J\n\x93.",
    "a name that is no text": b"\x80\x04K\x01K\x02\x93.",
    "a call of a text": b"\x80\x02U\x01a)R.",
    "a call of a type of storage": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "attributes of what has none": b"\x80\x02ccollections\nOrderedDict\n}U\x08__class__K\x01sb.",
    "an empty stack": b"\x80\x02R.",
    "a mark that is missing": b"\x80\x02u.",
    "a memo that is missing": b"\x80\x02h\x05.",
    "no end": b"\x80\x02}",
    "no end of a text": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "an endless text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "a memo of gigabytes": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a key that takes forever to hash": b"\x80\x02}" + b")" + b"2\x86" * 100 + b"K\x01s.",
    "a key that grows": b"\x80\x02})" + b"q\x00h\x00\x86" * 100 + b"K\x01s.",
    "a dict with itself": b"\x80\x02}q\x00U\x01ah\x00s.",
    "a list with itself": b"\x80\x02]q\x00h\x00a.",
    "another number of items": b"\x80\x02}(U\x01au.",
}


@pytest.mark.parametrize("name", BY_HAND)
def test_odd_pickles_are_refused_at_once(tmp_path, name):
    path = tmp_path / "weights.pth"
    for content in (zipped(**{"data.pkl": BY_HAND[name]}), legacy(None).replace(pickle.dumps(None, 2), BY_HAND[name])):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_state_dict(path)
        assert str(error.value).isprintable()


def a_tensor(name="a", offset=0, shape=(2, 3), strides=(3, 1), numel=6, key="0", kind="storage", data=bytes(24)):
    """A zip file with one tensor, described so."""

    def part(value):
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + part(kind) + b"ctorch\nFloatStorage\n" + part(key) + part("cpu") + part(numel) + b"tQ"
    arguments = b"(" + storage + part(offset) + part(shape) + part(strides) + part(False) + part({}) + b"t"
    content = b"\x80\x02}" + part(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."
    return zipped(**{"data.pkl": content, "data/0": data})


def test_the_tensor_that_the_next_test_damages_is_whole(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(a_tensor(data=np.arange(6, dtype=np.float32).tobytes()))
    np.testing.assert_array_equal(read_state_dict(path)["a"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    "damage",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**62},
        {"shape": (3, 3)},
        {"shape": (2, -3)},
        {"shape": (2**40, 3), "strides": (0, 1)},
        {"shape": (2**40, 2**40), "strides": (0, 0)},
        {"shape": (0, 2**62)},
        {"shape": (1,) * 70, "strides": (1,) * 70},
        {"shape": 6},
        {"shape": (2.0, 3)},
        {"strides": (4, 1)},
        {"strides": (-3, 1)},
        {"strides": (3,)},
        {"numel": 7},
        {"numel": 2**61},
        {"numel": "6"},
        {"key": "1"},
        {"key": 0},
        {"kind": "module"},
        {"data": bytes(20)},
        {"name": "\x1b[2J"},
    ],
    ids=str,
)
def test_tensors_beyond_their_storage_are_refused(tmp_path, damage):
    path = tmp_path / "weights.pth"
    path.write_bytes(a_tensor(**damage))
    with pytest.raises(UserError, match="is damaged"):
        read_state_dict(path)


def test_files_of_the_first_versions_are_read(tmp_path):
    """Texts of Python 2, tensors and parameters as PyTorch 0.1 and 0.2 rebuilt them, views of one storage."""

    def text(value):
        return b"U" + bytes([len(value)]) + value.encode()

    def storage(view):
        start = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("94") + text("cpu") + b"K\x06"
        return start + (b"(" + text("95") + b"K\x02K\x04t" if view else b"N") + b"tQ"

    def tensor(view, shape, strides):
        arguments = b"(" + storage(view) + b"K\x00" + shape + strides + b"t"
        return b"ctorch._utils\n_rebuild_tensor\n" + arguments + b"R"

    whole = tensor(False, b"K\x02K\x03\x86", b"K\x03K\x01\x86")
    part = b"ctorch.nn.parameter\nParameter\n" + tensor(True, b"K\x04\x85", b"K\x01\x85") + b"\x85R(\x89\x89Ntb"
    items = b"(" + b"]" + b"(" + text("whole") + whole + b"e" + b"]" + b"(" + text("part") + part + b"e"
    content = b"\x80\x02ccollections\nOrderedDict\n]" + items + b"e\x85R."
    head, keys = legacy(None).split(pickle.dumps(None, 2))
    assert keys == pickle.dumps([], 2)
    path = tmp_path / "weights.pth"
    numbers = struct.pack("<q", 6) + np.arange(6, dtype=np.float32).tobytes()
    path.write_bytes(head + content + pickle.dumps(["94"], 2) + numbers)
    tensors = read_state_dict(path)
    np.testing.assert_array_equal(tensors["whole"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(tensors["part"], [2, 3, 4, 5])


def test_packed_members_are_refused(tmp_path):
    """A few bytes could unpack to more than the memory holds."""
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(UserError, match=r"data\.pkl is compressed or too large"):
        read_state_dict(path)
