"""Saved problems and checkpoints as someone else may have left them: damaged, edited, hostile.

Whatever is in them, nothing is run, no other problem comes back in silence, and what is raised is one sentence of ours.
"""

import json
import os
import pathlib
import shutil
import subprocess

import jax
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
import training
from stochinv._archive import read_archive, write_archive

HOSTILE = [
    "os:system",
    "builtins:exec",
    "subprocess.run",
    "stochinv._save.save",
    "open('PWNED', 'w')",
    "../../x",
    "\0",
    "ProperScore",
    "x" * 300,
]


@pytest.fixture(autouse=True)
def nothing_is_run(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise AssertionError("a file ran code")

    for module, name in ((os, "system"), (os, "popen"), (subprocess, "run"), (subprocess, "Popen")):
        monkeypatch.setattr(module, name, fail)
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists("PWNED")


@pytest.fixture(scope="module")
def trained():
    return training.fit(training.problem(), training.examples(), steps=2).problem


def load(path):
    return si.load(path, training.measure, training.LinearDenoiser(jr.key(0)))


def attempt(path, trained):
    """Loads a file: either the very same problem, or one sentence."""
    try:
        loaded = load(path)
    except ValueError as error:
        assert "\n" not in str(error) and "`" in str(error)
        return False
    training.assert_equal(training.arrays(loaded), training.arrays(trained))
    assert repr(loaded) == repr(trained)
    return True


def test_flipped_bits(trained, tmp_path):
    path = tmp_path / "problem.si"
    trained.save(path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for index in rng.choice(len(content), 400, replace=False):
        flipped = bytearray(content)
        flipped[index] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        assert not attempt(path, trained)
    for length in rng.choice(len(content), 50, replace=False):
        path.write_bytes(content[:length])
        assert not attempt(path, trained)


def nodes(tree, path=()):
    """The paths of all values inside JSON data."""
    yield path
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from nodes(value, (*path, key))


def put(tree, path, value):
    if not path:
        return value
    tree = dict(tree) if isinstance(tree, dict) else list(tree)
    tree[path[0]] = put(tree[path[0]], path[1:], value)
    return tree


@pytest.mark.thorough
def test_edited_headers_with_right_checksums(trained, tmp_path):
    """Every value of the configuration replaced by hostile ones, one after the other."""
    path = tmp_path / "problem.si"
    trained.save(path)
    content, arrays = read_archive(path)
    hostile = [*HOSTILE, None, True, -1, 10**18, 1e308, [], {}, [[[[]]]], {"namedtuple": "os:system", "items": ["x"]}]
    hostile += [{"type": "os.system", "fields": {"command": "x"}}, {"function": "os.system"}, {"object": "os.system"}]
    hostile += [{"node": "os.system", "children": [["x", {"struct": [], "dtype": "float32"}]]}]
    rng = np.random.default_rng(0)
    places = [p for p in nodes(content) if p]
    assert len(places) > 40
    accepted = set()
    for place in places:
        for index in rng.choice(len(hostile), 6, replace=False):
            edited = put(content, place, hostile[index])
            if json.dumps(edited) == json.dumps(content):
                continue
            write_archive(path, edited, arrays)
            try:
                load(path)
                accepted.add((place, index))
            except ValueError as error:
                assert "\n" not in str(error) and "`" in str(error)
    # Whoever signs a file may say what nothing else tells: the version that wrote it, a context that the denoiser
    # takes, and settings within their ranges.
    for place, index in accepted:
        told = place == ("stochinv",) or place[:2] == ("data_info", "context")
        known = told or isinstance(hostile[index], bool | int | float)
        assert known, f"{place} may be {hostile[index]!r}"


@pytest.mark.parametrize("edit", ["drop", "add", "nan", "std", "shape", "dtype", "rename"])
def test_edited_arrays(trained, tmp_path, edit):
    path = tmp_path / "problem.si"
    trained.save(path)
    content, arrays = read_archive(path)
    name = "denoiser.target"
    if edit == "drop":
        del arrays[name]
    elif edit == "add":
        arrays["more"] = np.zeros(3)
    elif edit == "nan":
        arrays[name] = np.full_like(arrays[name], np.nan)
    elif edit == "std":
        arrays["std"] = -arrays["std"]
    elif edit == "shape":
        arrays[name] = arrays[name].T
    elif edit == "dtype":
        arrays[name] = arrays[name].astype(np.float64)
    else:
        arrays["denoiser.__class__"] = arrays.pop(name)
    write_archive(path, content, arrays)
    assert not attempt(path, trained)


def run(folder=None):
    return training.fit(training.problem(), training.examples(), steps=4, checkpoint=folder, checkpoint_every=2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    training.fit(training.problem(), training.examples(), steps=2, checkpoint=folder, checkpoint_every=2)
    return folder


def resumes_right(kept, tmp_path, change, whole):
    """Changes the files of a checkpoint; whether the run goes on, to the very same result, or else says why not."""
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    change(sorted(x for x in pathlib.Path(folder, "stochinv_2").rglob("*") if x.is_file()))
    try:
        rest = run(folder)
    except ValueError as error:
        assert "\n" not in str(error) and "checkpoint" in str(error)
        return False
    training.assert_equal(training.arrays(rest.problem), training.arrays(whole.problem))
    return True


@pytest.mark.slow
def test_damaged_checkpoints(kept, tmp_path):
    """Flipped bits and truncations all over their files, and files that are missing."""
    whole, rng = run(), np.random.default_rng(0)

    def flip(files):
        file = files[rng.integers(len(files))]
        content = bytearray(file.read_bytes())
        if content:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)

    def cut(files):
        file = files[rng.integers(len(files))]
        file.write_bytes(file.read_bytes()[: rng.integers(max(file.stat().st_size, 1))])

    results = [resumes_right(kept, tmp_path, change, whole) for change in [flip] * 40 + [cut] * 10]
    assert not all(results)
    for index in range(6):
        resumes_right(kept, tmp_path, lambda files, i=index: files[i % len(files)].unlink(), whole)
    jax.clear_caches()


@pytest.mark.parametrize("value", [*HOSTILE[:3], None, -1, 10**18, [], {}, {"function": "os.system"}], ids=str)
def test_hostile_records_of_checkpoints(kept, tmp_path, value):
    def change(files):
        (file,) = (x for x in files if x.parent.name == "record" and x.name == "metadata")
        sealed = json.loads(file.read_text())
        sealed["content"] = value
        file.write_text(json.dumps(sealed))

    assert not resumes_right(kept, tmp_path, change, None)
