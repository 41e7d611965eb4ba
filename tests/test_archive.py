import errno
import multiprocessing
import os
import stat
import struct
import threading

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
import training
from stochinv._archive import DTYPES, read_archive, write_archive

DAMAGED = "`path`: .* is not a stochinv file, or is damaged .*; use another copy"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "file.si"


def tree():
    return {"w": np.arange(6.0).reshape(2, 3), "b": np.zeros(2, bool)}


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        np.testing.assert_array_equal(np.asarray(a[name]), np.asarray(b[name]))


def test_content_and_arrays_come_back(path):
    content = {"text": 'é "\\" \n ]}[{', "numbers": [1, -2.5, 1e-300, 2**64, True, None], "empty": [{}, [], ""]}
    arrays = {
        "denoiser.weight['ä']": jnp.arange(6.0).reshape(2, 3),
        "empty": np.zeros((0, 3)),
        "scalar": jnp.asarray(2),
        "big-endian": np.arange(3, dtype=">f4"),
        "transposed": np.arange(6).reshape(2, 3).T,
        "reversed": np.arange(6)[::-2],
    }
    write_archive(path, content, arrays)
    read, got = read_archive(path)
    assert read == content and list(got) == list(arrays)
    equal(got, {name: np.asarray(x).astype(x.dtype.newbyteorder("=")) for name, x in arrays.items()})
    got["empty"][...] = 1
    got["transposed"] += 1  # ordinary arrays, which may be written to


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(path, name):
    x = np.asarray([[1, 0.5], [1, 1]]).astype(DTYPES[name])
    write_archive(path, {}, {"x": x})
    equal(read_archive(path)[1], {"x": x})


def test_special_values(path):
    x = np.asarray([np.nan, -np.inf, -0.0, 5e-324])
    write_archive(path, {}, {"x": x})
    assert read_archive(path)[1]["x"].tobytes() == x.tobytes()


def test_an_array_that_is_longer_than_a_chunk(path, monkeypatch):
    monkeypatch.setattr(si._archive, "_CHUNK", 100)
    arrays = {"x": np.arange(1001), "y": np.arange(25, dtype=np.int32)}
    write_archive(path, {}, arrays)
    equal(read_archive(path)[1], arrays)


def test_the_layout_is_as_documented(path):
    write_archive(path, {"a": 1}, {"x": np.asarray([1, 2], np.uint16)})
    data = path.read_bytes()
    header = b'{"arrays":[["x","uint16",[2]]],"content":{"a":1}}'
    assert data[:12] == b"stochinv" + struct.pack("<I", 2)
    assert data[44:] == struct.pack("<Q", len(header)) + header + b"\1\0\2\0"


def test_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match="`path`: there is no file .*file.si"):
        read_archive(path)


@pytest.mark.parametrize("kind", ["empty", "text", "zip", "folder", "fifo", "device"])
def test_what_is_no_archive(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/zero"
    else:
        path.write_bytes({"empty": b"", "text": b"hello" * 100, "zip": b"PK\3\4" + bytes(100)}[kind])
    with pytest.raises(ValueError, match=DAMAGED):
        read_archive(path)
    if kind in ("folder", "fifo", "device"):
        with pytest.raises(ValueError, match="`path`: .* is no regular file, and is not overwritten"):
            write_archive(path, {}, {})


def test_another_format_is_named(path):
    write_archive(path, {}, tree())
    data = bytearray(path.read_bytes())
    data[8] = 7
    path.write_bytes(data)
    with pytest.raises(ValueError, match="has format 7, but this version of stochinv reads format 2; read it with"):
        read_archive(path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="a superuser may read everything")
def test_a_file_that_may_not_be_read(path):
    write_archive(path, {}, tree())
    path.chmod(0)
    with pytest.raises(PermissionError):
        read_archive(path)


def test_permission_errors_are_passed_on(path, monkeypatch):
    write_archive(path, {}, tree())

    def refuse(*args):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PermissionError):
        read_archive(path)
    with pytest.raises(PermissionError):
        write_archive(path, {}, tree())


nested = []
for _ in range(300):
    nested = [nested]


@pytest.mark.parametrize(
    "content",
    [{"x": np.nan}, {"x": {1, 2}}, {"x": nested}, {"x": "\ud800"}, {"x": 10**5000}, {"x": {1: 0, "1": 0}}],
    ids=["nan", "set", "nested", "surrogate", "huge", "ambiguous"],
)
def test_content_that_is_no_json_is_refused(path, content):
    with pytest.raises(ValueError, match="`content` and `arrays` cannot be written"):
        write_archive(path, content, {})
    assert not path.parent.exists()


def test_arrays_without_a_stored_dtype_are_refused(path):
    with pytest.raises(ValueError, match="state.key has dtype key<fry>, .*`jax.random.key_data`"):
        write_archive(path, {}, {"state.key": jr.key(0)})
    with pytest.raises(ValueError, match="x has dtype object, which files do not hold"):
        write_archive(path, {}, {"x": np.asarray([None])})
    assert not path.parent.exists()


def test_a_sharded_array(path):
    mesh = jax.make_mesh((1,), ("x",))
    x = jax.device_put(jnp.arange(8.0), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    write_archive(path, {}, {"x": x})
    equal(read_archive(path)[1], {"x": x})


@pytest.mark.parametrize("step", ["os.fsync", "os.replace", "hashlib.sha256"])
@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()], ids=["disk", "interrupt"])
def test_a_failure_leaves_the_older_file(path, monkeypatch, step, error):
    write_archive(path, {"version": 1}, tree())

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(step, fail)
    with pytest.raises(type(error)):
        write_archive(path, {"version": 2}, tree())
    monkeypatch.undo()
    assert os.listdir(path.parent) == [path.name]
    assert read_archive(path)[0] == {"version": 1}


def test_a_file_is_on_the_disk_before_it_replaces_another(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    kind = lambda descriptor: "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
    monkeypatch.setattr(os, "fsync", lambda x: (calls.append((kind(x), os.fstat(x).st_size)), fsync(x)))
    monkeypatch.setattr(os, "replace", lambda *args: (calls.append(("replace", 0)), replace(*args)))
    write_archive(path, {}, tree())
    assert [x for x, _ in calls] == ["file", "replace", "folder"]
    assert calls[0][1] == path.stat().st_size


def test_permissions_are_those_of_any_new_file(path):
    before = os.umask(0o027)
    try:
        write_archive(path, {}, tree())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    link.symlink_to(target)
    write_archive(link, {}, tree())
    assert link.is_symlink()
    equal(read_archive(target)[1], tree())


def test_a_name_as_long_as_the_system_allows(tmp_path):
    write_archive(tmp_path / ("x" * 255), {}, tree())
    equal(read_archive(tmp_path / ("x" * 255))[1], tree())


def save_often(path, number, errors):
    try:
        for _ in range(5):
            write_archive(path, {"number": number}, {"x": np.full(20_000, number)})
    except BaseException as error:
        errors.append(error)
        raise


def assert_whole(path):
    content, arrays = read_archive(path)
    np.testing.assert_array_equal(arrays["x"], content["number"])
    assert os.listdir(path.parent) == [path.name]


def test_threads_that_save_to_one_path(path):
    errors = []
    threads = [threading.Thread(target=save_often, args=(path, i, errors)) for i in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            content, arrays = read_archive(path)  # whole at any time
            assert np.all(arrays["x"] == content["number"])
    assert not errors
    assert_whole(path)


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_processes_that_save_to_one_path(path):
    processes = [multiprocessing.get_context("fork").Process(target=save_often, args=(path, i, [])) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert_whole(path)


def test_the_arrays_of_a_problem(path):
    arrays = {f"{i}": x for i, x in enumerate(jax.tree.leaves(training.arrays(training.problem())))}
    write_archive(path, {}, arrays)
    equal(read_archive(path)[1], arrays)
