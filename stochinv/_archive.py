r"""Files: a JSON header and named arrays, written in one step and read without trust.

    8 bytes   "stochinv"
    u32       version of the format
    32 bytes  SHA-256 of all that follows
    u64       length of the header
    header    {"arrays": [[name, dtype, shape], ...], "content": {...}}, UTF-8
    arrays    their bytes, in that order, C-contiguous, without gaps

Numbers are little-endian. Reading allocates no more than the file holds, and runs nothing that it says: dtypes come
from a closed table, and everything else stays data. There is one way to write a header, which is checked, so that
repeated keys, NaN and lone surrogates need no rules of their own. The checksum detects damage, not forgery: whoever
reads the content has to check it.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import stat
import struct
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

VERSION = 2  # 1 was a zip archive
_MAGIC = b"stochinv"
_PREFIX = struct.Struct("<8sI32s")
_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 2**24
_MAX_DEPTH = 200
_MAX_NODES = 1_000_000
_CHUNK = 2**22

_FLOATS = "float16 float32 float64 bfloat16 float8_e3m4 float8_e4m3 float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz"
_OTHERS = "float8_e5m2 float8_e5m2fnuz float8_e8m0fnu bool int8 int16 int32 int64 uint8 uint16 uint32 uint64"
DTYPES = {name: jnp.dtype(name).newbyteorder("<") for name in f"{_FLOATS} {_OTHERS} complex64 complex128".split()}


def write_archive(path: str | os.PathLike[str], content: dict[str, Any], arrays: Mapping[str, Array | np.ndarray]):
    """Writes one file, whole or not at all: an older one stays until the new one is on the disk.

    Any number of threads and processes may write to one path; one of them wins.

    **Arguments:**

    - `path`: the file; missing folders are made.
    - `content`: JSON data with at most 200 levels.
    - `arrays`: arrays of any shape, with the names by which they are found again.

    **Raises:**

    `ValueError` for content that is no such JSON, for arrays without a stored dtype, such as keys, and for a `path`
    that is a folder or a device. `OSError` if the file cannot be written.
    """
    path = os.path.realpath(os.fspath(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"`path`: {path} is no regular file, and is not overwritten; give another one.")
    header = _header(content, arrays)
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    # Not by `tempfile`, whose files only their owner may read.
    temporary = os.path.join(folder, f".saving-{os.getpid()}-{threading.get_ident()}-{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            _write(file, header, arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    # Some systems cannot do this, and none needs it for the file to be whole.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_archive(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads a file of [`stochinv._archive.write_archive`][].

    **Arguments:**

    - `path`: the file, which may come from anybody.

    **Returns:**

    The content and the arrays by name.

    **Raises:**

    `ValueError` if the file is damaged, of another format, or no regular file; `FileNotFoundError` if there is none;
    another `OSError` if it may not be read.
    """
    path = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is no regular file")
        with open(path, "rb") as file:
            version, digest = _read_prefix(file)
            if version == VERSION:
                return _read(file, digest)
    except FileNotFoundError:
        raise FileNotFoundError(f"`path`: there is no file {path}; give that of a saved problem.") from None
    except ValueError as error:
        raise ValueError(
            f"`path`: {path} is not a stochinv file, or is damaged ({error}); use another copy."
        ) from error
    raise ValueError(
        f"`path`: {path} has format {version}, but this version of stochinv reads format {VERSION}; read it with the "
        "version that wrote it, or use another copy."
    )


def _header(content, arrays) -> bytes:
    for name, x in arrays.items():
        if x.dtype.name not in DTYPES:
            raise ValueError(
                f"`arrays`: {name} has dtype {x.dtype.name}, which files do not hold; convert it (a key by "
                "`jax.random.key_data`)."
            )
    entries = [[name, x.dtype.name, list(x.shape)] for name, x in arrays.items()]
    try:
        header = _dump({"arrays": entries, "content": content})
        _shapes(_parse(header), sum(x.nbytes for x in arrays.values()))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`content` and `arrays` cannot be written ({error}); give plain JSON data.") from error
    return header


def _write(file: io.BufferedWriter, header: bytes, arrays):
    digest = hashlib.sha256()

    def put(data):
        digest.update(data)
        file.write(data)

    file.write(_PREFIX.pack(_MAGIC, VERSION, bytes(32)))
    put(_LENGTH.pack(len(header)))
    put(header)
    for x in arrays.values():
        for chunk in _chunks(np.asarray(x, DTYPES[x.dtype.name], order="C")):
            put(chunk)
    file.seek(0)
    file.write(_PREFIX.pack(_MAGIC, VERSION, digest.digest()))


def _read_prefix(file: io.BufferedReader) -> tuple[int, bytes]:
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or not prefix.startswith(_MAGIC):
        raise ValueError("it does not start like one")
    _, version, digest = _PREFIX.unpack(prefix)
    return version, digest


def _read(file: io.BufferedReader, expected: bytes):
    left = os.fstat(file.fileno()).st_size - _PREFIX.size - _LENGTH.size
    if left < 0:
        raise ValueError("it ends early")
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    if length > min(left, _MAX_HEADER):
        raise ValueError("its header is too long")
    raw = file.read(length)
    header = _parse(raw)
    shapes = _shapes(header, left - length)
    digest = hashlib.sha256(_LENGTH.pack(length) + raw)
    arrays = {}
    for name, (dtype, shape) in shapes.items():
        arrays[name] = np.empty(shape, dtype)
        for chunk in _chunks(arrays[name]):
            if file.readinto(chunk) < len(chunk):
                raise ValueError("it ends early")
            digest.update(chunk)
    if digest.digest() != expected:
        raise ValueError("its checksum is wrong")
    if any(x.dtype == bool and x.view(np.uint8).max(initial=0) > 1 for x in arrays.values()):
        raise ValueError("a truth value is neither 0 nor 1")
    return header["content"], arrays


def _chunks(x: np.ndarray) -> Iterator[memoryview]:
    """The memory of a contiguous array, in parts that fit a cache."""
    memory = x.reshape(-1).view(np.uint8).data
    return (memory[start : start + _CHUNK] for start in range(0, len(memory), _CHUNK))


def _dump(header) -> bytes:
    return json.dumps(header, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _parse(raw: bytes) -> Any:
    """The JSON in `raw`, once its depth and its size in memory are known to be small."""
    bare = np.frombuffer(raw.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    outside = ~np.logical_xor.accumulate(bare == ord('"'))
    opened = outside & ((bare == ord("[")) | (bare == ord("{")))
    closed = outside & ((bare == ord("]")) | (bare == ord("}")))
    depth = np.cumsum(opened.view(np.int8) - closed.view(np.int8), dtype=np.int32)
    if depth.max(initial=0) > _MAX_DEPTH or (opened | (outside & (bare == ord(",")))).sum() > _MAX_NODES:
        raise ValueError(f"its header has more than {_MAX_DEPTH} levels or {_MAX_NODES} values")
    try:
        header = json.loads(raw.decode())
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if _dump(header) != raw:
        raise ValueError("its header has a form in which none is written")
    return header


def _shapes(header: Any, size: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Dtypes and shapes by name, if they are valid and fill `size` bytes."""
    if type(header) is not dict or sorted(header) != ["arrays", "content"]:
        raise ValueError("its header lacks a part, or has another one")
    if type(header["content"]) is not dict or type(header["arrays"]) is not list:
        raise ValueError("a part of its header has the wrong type")
    shapes = {}
    for entry in header["arrays"]:
        if type(entry) is not list or [type(x) for x in entry] != [str, str, list] or entry[0] in shapes:
            raise ValueError("an array is not described by a name of its own, dtype and shape")
        name, dtype, shape = entry
        if dtype not in DTYPES:
            raise ValueError(f"the dtype {dtype!r:.40} is unknown")
        if len(shape) > 32 or any(type(x) is not int or not 0 <= x < 2**62 for x in shape):
            raise ValueError(f"the shape of {name!r:.80} is not valid")
        itemsize = DTYPES[dtype].itemsize
        size -= math.prod(shape) * itemsize
        if size < 0 or math.prod(max(x, 1) for x in shape) * itemsize >= 2**62:
            raise ValueError(f"{name!r:.80} is larger than the file")
        shapes[name] = DTYPES[dtype], tuple(shape)
    if size:
        raise ValueError(f"it has {size} bytes too many")
    return shapes
