import builtins
import functools
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import tracemalloc

import numpy as np
import pytest

import stochinv as si
from stochinv._archive import read_archive, write_archive
from stochinv._describe import describe, differences, rebuild
from stochinv._structure import decode_structure

PREFIX = 44
ARRAYS = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.ones(3, bool)}
NAMES = ["os:system", "os.system", "builtins:exec", "builtins.exec", "subprocess.Popen", "../../x", "\0", "", "é\n" * 9]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.si"


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    def guarded(function):
        def call(*args, **kwargs):
            # The checks of annotations make functions and import modules in this way.
            if sys._getframe(1).f_globals["__name__"].partition(".")[0] not in ("jaxtyping", "beartype", "importlib"):
                raise SystemExit("code from a file was run")
            return function(*args, **kwargs)

        return call

    for module, name in [(os, "system"), (os, "popen"), (builtins, "exec"), (builtins, "eval"), (subprocess, "Popen")]:
        monkeypatch.setattr(module, name, guarded(getattr(module, name)))


@functools.cache
def original():
    with tempfile.TemporaryDirectory() as folder:
        write_archive(os.path.join(folder, "x"), {"a": [1, {"b": "c"}]}, ARRAYS)
        with open(os.path.join(folder, "x"), "rb") as file:
            return file.read()


def refuse(path, data=None, megabytes=6.0):
    """Reads bad data: one sentence in one line, and hardly any memory."""
    if data is not None:
        path.write_bytes(data)
    tracemalloc.start()
    try:
        read_archive(path)
    except ValueError as error:
        message = str(error)
        assert type(error) is ValueError
    else:
        message = "nothing was raised"
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert message.startswith(f"`path`: {path} ") and message.endswith("use another copy."), message
    assert "\n" not in message and len(message) < 600, message
    assert peak < megabytes * 2**20, peak
    return message


def signed(header, arrays=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False, separators=(",", ":"))
    header = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    rest = struct.pack("<Q", len(header) if length is None else length) + header + arrays
    return b"stochinv" + struct.pack("<I", 2) + hashlib.sha256(rest).digest() + rest


def of_arrays(*entries, content=None, data=b""):
    return signed({"arrays": list(entries), "content": {} if content is None else content}, data)


def test_the_helpers_sign_as_the_library_does(path):
    path.write_bytes(of_arrays(["x", "uint8", [2]], content={"a": "é"}, data=b"\3\4"))
    content, arrays = read_archive(path)
    assert content == {"a": "é"} and arrays["x"].tolist() == [3, 4]


def test_a_flipped_bit_anywhere(path):
    rng = np.random.default_rng(0)
    for i in range(len(original())):
        data = bytearray(original())
        data[i] ^= 1 << rng.integers(8)
        refuse(path, data)


def test_every_bit_before_the_header(path):
    for i in range(8 * (PREFIX + 8)):
        data = bytearray(original())
        data[i // 8] ^= 1 << (i % 8)
        refuse(path, data)


def test_truncation_at_every_length(path):
    for length in range(len(original())):
        refuse(path, original()[:length])
    refuse(path, original() + b"\0")


def test_random_splices(path):
    rng = np.random.default_rng(1)
    for _ in range(300):
        data = original()
        start, stop, other, end = rng.integers(len(data), size=4)
        data = data[: min(start, stop)] + data[min(other, end) : max(other, end)] + data[max(start, stop) :]
        if data != original():
            refuse(path, data)


def test_spliced_headers_that_are_signed_anew(path):
    rng = np.random.default_rng(2)
    (length,) = struct.unpack("<Q", original()[PREFIX : PREFIX + 8])
    header, arrays = original()[PREFIX + 8 :][:length], original()[PREFIX + 8 + length :]
    pieces = [
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b"\\",
        b"\\ud800",
        b",",
        b"1e400",
        b"NaN",
        b"-1",
        b"\xff",
        b"null",
        b"9" * 30,
    ]
    accepted = 0
    for _ in range(800):
        start, stop = np.sort(rng.integers(len(header), size=2))
        stop = min(stop, start + rng.integers(4))
        edited = header[:start] + pieces[rng.integers(len(pieces))] + header[stop:]
        path.write_bytes(signed(edited, arrays))
        try:
            content, read = read_archive(path)
        except ValueError:
            refuse(path)
        else:
            # Other names and content are valid, if they are what would have been written.
            accepted += 1
            write_archive(path, content, read)
            assert path.read_bytes() == signed(edited, arrays)
    assert accepted < 800


@pytest.mark.parametrize("name", [*NAMES, "\ud800"])
def test_hostile_names_stay_data(path, name):
    if name == "\ud800":
        refuse(path, of_arrays([name, "uint8", [1]], data=b"\0"))
    else:
        path.write_bytes(of_arrays([name, "uint8", [1]], content={name: name}, data=b"\0"))
        content, arrays = read_archive(path)
        assert content == {name: name} and list(arrays) == [name]
        assert os.listdir(path.parent) == [path.name]
    refuse(path, of_arrays(["x", name, [1]], data=b"\0"))
    refuse(path, of_arrays([name, "uint8", [2]], data=b"\0"))
    refuse(path, signed({"arrays": [], "content": {}, name: 1}))


SIZES = [10**18, 16 * 10**10, 2**31, 2**62, 2**63, 2**64, 10**400, -1, True, 1.0, 1.5, "1", None, [1], {}]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: repr(size)[:20])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "complex128"])
def test_hostile_shapes(path, size, dtype):
    for shape in ([size], [2, size], [size, size], [0, size, size], [size] * 5, [1] * 40, size):
        refuse(path, of_arrays(["x", dtype, shape], data=bytes(64)))
        refuse(path, of_arrays(["x", "uint8", [64]], ["y", dtype, shape], data=bytes(64)))


@pytest.mark.parametrize(
    "entry",
    [
        None, 1, "x", {}, [], ["x"], ["x", "uint8"], ["x", "uint8", [1], 1], [1, "uint8", [1]], ["x", None, [1]],
        ["x", ["uint8"], [1]], ["x", "object", [1]], ["x", "O", [1]], ["x", "V1", [1]], ["x", "S1", [1]],
        ["x", "u1", [1]], ["x", "datetime64[s]", []], ["x", "key<fry>", [1]], ["x", "uint8", None],
    ],
    ids=repr,
)  # fmt: skip
def test_hostile_entries(path, entry):
    refuse(path, of_arrays(entry, data=b"\0"))


def test_hostile_headers(path):
    good = {"arrays": [], "content": {}}
    for header in (None, 1, "x", [], {}, [good], {"arrays": []}, {"content": {}}, good | {"arrays": {}}):
        refuse(path, signed(header))
    for content in (None, 1, "x", []):
        refuse(path, signed(good | {"content": content}))
    refuse(path, of_arrays(["x", "uint8", [1]], ["x", "uint8", [1]], data=b"\0\0"))
    refuse(path, of_arrays(["x", "uint8", [0]], ["x", "uint8", [0]]))
    refuse(path, of_arrays(["x", "bool", [2]], data=b"\1\2"))
    for inner in (b"NaN", b"-Infinity", b"1e400", b"9" * 5000, b"1.0e0", b" 1", b'"\\u0041"', b'"\\ud800"', b'"\xff"'):
        refuse(path, signed(b'{"arrays":[],"content":{"a":' + inner + b"}}"))
    refuse(path, signed(b'{"arrays":[],"arrays":[],"content":{}}'))
    refuse(path, signed(b'{"arrays":[],"content":{"a":1,"a":2}}'))
    refuse(path, signed(b"\xef\xbb\xbf" + json.dumps(good).encode()))
    refuse(path, signed(json.dumps(good, separators=(",", ":")).encode("utf-16")))
    for length in (0, 1, 10**4, 2**24, 2**24 + 1, 2**63, 2**64 - 1):
        refuse(path, signed(good, length=length))


@pytest.mark.parametrize("opening", ["[", '{"a":', '["\\"[",[{"]":', "[[],[],"])
@pytest.mark.parametrize("depth", [1, 150, 250, 900, 1100, 20_000])
def test_depth_bombs(path, opening, depth):
    inner = (opening * depth).encode()
    refuse(path, signed(inner))
    refuse(path, signed(b'{"arrays":[],"content":{"a":' + inner))


def test_the_deepest_header_that_is_read(path):
    for depth in (198, 199, 1000):
        path.write_bytes(signed(b'{"arrays":[],"content":{"[[{":' + b"[" * depth + b"]" * depth + b"}}"))
        if depth == 198:
            assert "[[{" in read_archive(path)[0]
        else:
            assert "more than 200 levels" in refuse(path)


def test_large_headers_take_memory_in_proportion(path):
    for inner in (b"[],", b'"",', b'{"":0},', b"0,"):
        header = b'{"arrays":[],"content":{"a":[' + inner * 1_000_001 + b"0]}}"
        refuse(path, signed(header), megabytes=16 * len(header) / 2**20 + 1)


def test_a_file_that_claims_to_be_huge(path):
    path.write_bytes(of_arrays(["x", "uint8", [16 * 10**10]], data=bytes(100)))
    assert "is larger than the file" in refuse(path)


def test_a_file_that_shrinks_while_it_is_read(path, monkeypatch):
    size = 100_000
    path.write_bytes(of_arrays(["x", "uint8", [size]], data=bytes(size)))
    parse = si._archive._parse
    monkeypatch.setattr(si._archive, "_parse", lambda raw: (os.truncate(path, size // 2), parse(raw))[1])
    assert "it ends early" in refuse(path)


@pytest.mark.thorough
def test_hostile_descriptions_run_nothing(path):
    kinds = {"Cosine": si.CosineSchedule, "View": si.View}
    here = describe({"a": si.CosineSchedule(), "b": [1, 2.5, np.arange(3)], "c": None}, kinds)
    for name in [*NAMES, "stochinv.CosineSchedule", "__init__", "Cosine.alpha", None, 1, ["Cosine"], {}]:
        for node in (
            {"function": name},
            {"object": name},
            {"dtype": name},
            {"type": name, "fields": {}},
            {"type": name, "fields": {"command": "touch x"}},
            {"type": "Cosine", "fields": {name if type(name) is str else "x": 1}},
            {"module": name, "fields": {}},
            {"node": name, "children": [[name, {"function": name}]]},
            {"array": [1], "dtype": name, "shape": [1]},
            {"struct": [1], "dtype": name},
        ):
            for bad in (node, {"list": [node]}, {"dict": [["x", node]]}, {"dict": [[node, 1]]}):
                with pytest.raises(ValueError, match="`x` cannot be rebuilt from the file .*use another copy.$"):
                    rebuild(bad, kinds, "x")
                with pytest.raises(ValueError, match="`x` cannot be rebuilt from the file .*use another copy.$"):
                    decode_structure(bad, kinds, name="x")
                for found in (differences(bad, here, "x"), differences({"dict": [["a", bad]]}, here, "x")):
                    assert 1 <= len(found) <= 5 and all("\n" not in x and len(x) < 300 for x in found)


def mutated(rng, node):
    """`node` with one part exchanged for anything."""
    anything = [None, True, 0, -1, 10**30, 1e308, "", "x" * 500, "\n", [], {}, [[]], {"float": []}, {"list": 1}]
    parts = list(node.items()) if type(node) is dict else list(enumerate(node)) if type(node) is list else []
    if not parts or rng.random() < 0.2:
        return anything[rng.integers(len(anything))]
    key, part = parts[rng.integers(len(parts))]
    if type(node) is list:
        return node[:key] + [mutated(rng, part)] * rng.integers(3) + node[key + 1 :]
    new = "y" if rng.random() < 0.1 else key
    return {k: v for k, v in node.items() if k != key} | {new: mutated(rng, part)}


@pytest.mark.thorough
def test_random_descriptions():
    rng = np.random.default_rng(3)
    kinds = {"Cosine": si.CosineSchedule, "View": si.View, "Roles": si.RandomViews}
    x = {"a": si.CosineSchedule(), "b": (1, np.float32(2.5), [None, np.nan]), "c": si.RandomViews((0, 2))}
    here = describe(x, kinds)
    assert rebuild(json.loads(json.dumps(here)), kinds)["c"] == x["c"]
    for _ in range(1500):
        node = mutated(rng, here)
        found = differences(node, here, "x")
        assert found == [] if json.dumps(node) == json.dumps(here) else found or node == here
        for function in (rebuild, decode_structure):
            try:
                function(node, kinds)
            except ValueError as error:
                assert "\n" not in str(error) and len(str(error)) < 500
