import collections
import dataclasses
import functools
import json
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from stochinv._describe import describe, differences, rebuild
from stochinv._save import CONTAINERS
from stochinv._structure import Opaque, decode_structure, encode_structure, named_leaves, same_structure

pytestmark = pytest.mark.filterwarnings("ignore:Using `field.init=False.`")


class Pose(NamedTuple):
    angle: Any
    shift: Any = None


class Camera(eqx.Module):
    matrix: Any
    focal: float = eqx.field(static=True, default=2.0)


class Positive(eqx.Module):
    value: float
    half: float = eqx.field(init=False, static=True)

    def __init__(self, value):
        self.value = value
        self.half = value / 2

    def __check_init__(self):
        if self.value <= 0:
            raise ValueError(f"`value` must be positive,\ngot {self.value}.")


@dataclasses.dataclass
class Plain:
    x: Any


@jax.tree_util.register_pytree_node_class
class Odd:
    def __init__(self, *children):
        self.children = children

    def tree_flatten(self):
        return self.children, None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


def weight(level=1.0):
    return level


KINDS = {"Pose": Pose, "Camera": Camera, "Positive": Positive, "Plain": Plain, "weight": weight, "View": si.View}
LIBRARY = {"View": si.View}


def through_json(node):
    return json.loads(json.dumps(node, allow_nan=False))


OBJECTS = [
    None,
    True,
    -3,
    2**70,
    0.1,
    np.inf,
    -np.inf,
    1 + 2j,
    "text",
    [1, (2.0, [None])],
    {"a": 1, 2: {"b": ()}, None: 3, 1.5: 4},
    Pose(1, (2, 3)),
    Positive(3.0),
    Plain([Plain(None)]),
    weight,
    Camera,
    jnp.dtype("bfloat16"),
    jax.ShapeDtypeStruct((2, 0), jnp.float32),
    {"nested": [Camera(Pose(weight, Positive(1.0)), 3.0)]},
]


@pytest.mark.parametrize("x", OBJECTS, ids=lambda x: repr(x).split(" at ")[0])
def test_objects_come_back(x):
    node = through_json(describe(x, KINDS))
    got = rebuild(node, KINDS)
    assert type(got) is type(x) and got == x
    assert describe(got, KINDS) == node
    assert differences(node, describe(x, KINDS), "x") == []


@pytest.mark.parametrize(
    "x",
    [
        jnp.arange(6.0).reshape(2, 3),
        jnp.asarray(True),
        jnp.asarray([0.3, jnp.nan, -jnp.inf], jnp.bfloat16),
        jnp.zeros((0, 2), jnp.uint8),
        jnp.asarray([1 + 2j, -1j]),
        jnp.asarray([0.3, 448.0], jnp.float8_e4m3fn),
        np.float32(0.1),
        np.arange(3, dtype=">i4"),
    ],
    ids=str,
)
def test_arrays_come_back(x):
    node = through_json(describe(x))
    got = rebuild(node, {})
    assert got.dtype == x.dtype.newbyteorder("=") and got.shape == x.shape
    np.testing.assert_array_equal(np.asarray(got).astype(complex), np.asarray(x).astype(complex))
    assert describe(got) == node


def test_nan_comes_back():
    assert np.isnan(rebuild(through_json(describe(float("nan"))), {}))


def test_what_is_described_without_its_value():
    large, other = jnp.zeros(1025), jnp.zeros(1025).at[7].set(1)
    assert describe(large) == describe(np.zeros(1025, np.float32)) != describe(other)
    assert describe(jr.key(0)) != describe(jr.key(1))
    assert describe(jr.key(0))["dtype"] == "key<fry>"
    assert describe(object()) == {"object": "builtins.object"}
    assert describe(lambda: 0)["function"].endswith("<lambda>")
    assert describe(jax.lax.Precision.HIGH)["object"].endswith("Precision.HIGH")
    assert describe(functools.partial(weight, 1)) != describe(functools.partial(weight, 2))
    assert describe(jnp.float32) == describe(np.dtype("float32")) == describe(np.float32) == {"dtype": "float32"}
    assert describe(np.float64(0.1)) == 0.1
    for x in (large, jr.key(0), object(), weight, functools.partial(weight, 1)):
        with pytest.raises(ValueError, match="`x` cannot be rebuilt"):
            rebuild(describe(x), {}, "x")


def test_names_are_those_of_the_table():
    assert describe(Camera(1), KINDS)["type"] == "Camera"
    assert describe(Camera(1))["type"] == f"{__name__}.Camera"
    with pytest.raises(ValueError, match=f"`camera` .*{'Camera'} is not known here.*; give it yourself"):
        rebuild(describe(Camera(1)), KINDS, "camera")
    with pytest.raises(ValueError, match="Camera is not known here"):
        rebuild(describe(Camera(1), KINDS), {}, "camera")


def test_what_has_no_end():
    cycle: list = []
    cycle.append(cycle)
    broad: list = []
    broad.extend([broad, broad])
    deep = None
    for _ in range(60):
        deep = (deep,)
    for x in (cycle, broad, deep, list(range(100_001))):
        with pytest.raises(ValueError, match="cannot be described .it has more than 50 levels or 100000 parts"):
            describe(x)
    with pytest.raises(ValueError, match="more than 50 levels"):
        rebuild(functools.reduce(lambda node, _: {"list": [node]}, range(5000), 1), {})
    with pytest.raises(ValueError, match="more than 50 levels"):
        encode_structure(functools.reduce(lambda x, _: (x,), range(60), jnp.zeros(1)), {})


@pytest.mark.parametrize(
    "node",
    [
        {"type": "weight", "fields": {"level": 1}},
        {"type": "weight", "fields": {}},
        {"type": "Camera", "fields": {"matrix": 1}},
        {"type": "Camera", "fields": {"matrix": 1, "focal": 2.0, "more": 1}},
        {"type": "Camera", "fields": [["matrix", 1]]},
        {"type": "Pose", "fields": {"angle": 1}},
        {"type": "Positive", "fields": {"value": 1.0, "half": 1.0}, "more": 1},
        {"dict": [["a", 1], ["a", 2]]},
        {"dict": [[{"list": []}, 1]]},
        {"list": 1},
        {"list": "ab"},
        {"array": [1, 2], "dtype": "int32", "shape": [3]},
        {"array": [1.5], "dtype": "int32", "shape": [1]},
        {"array": ["1"], "dtype": "float32", "shape": [1]},
        {"array": [300], "dtype": "uint8", "shape": [1]},
        {"array": [1], "dtype": "object", "shape": [1]},
        {"array": [], "dtype": "int32", "shape": [0, -1]},
        {"float": "1e5"},
        {"complex": [1.0]},
        {"struct": [True], "dtype": "int32"},
        {"function": "os.system"},
        [],
        {},
    ],
    ids=str,
)
def test_damaged_descriptions_are_refused(node):
    with pytest.raises(ValueError, match="`x` cannot be rebuilt from the file .*; give it yourself, or use another"):
        rebuild(node, KINDS, "x")


def test_invariants_are_checked():
    node = describe(Positive(1.0), KINDS)
    node["fields"]["value"] = -1.0
    with pytest.raises(ValueError, match="`value` must be positive, got -1.0") as caught:
        rebuild(node, KINDS)
    assert "\n" not in str(caught.value) and "positive,\n" in str(caught.value.__cause__)


def test_differences_are_named():
    def compare(saved, here, kinds=KINDS):
        return differences(through_json(describe(saved, kinds)), describe(here, kinds), "x")

    assert compare(Positive(12.5), Positive(10.0))[0] == "`x.value` is 12.5 in the file and 10.0 here"
    assert compare(Positive(1.0), Camera(1)) == ["`x` is Positive in the file and Camera here"]
    assert compare(Positive(1.0), Camera(1), {}) == ["`x` is Positive in the file and Camera here"]
    assert compare([1, 2], [1, 3]) == ["`x[1]` is 2 in the file and 3 here"]
    assert compare([1, 2], (1, 2)) == ["`x` is a list of 2 in the file and a tuple of 2 here"]
    assert compare([1], [1, None]) == ["`x[1]` is missing in the file and None here"]
    assert compare({"a": 1, "b": 2}, {"b": 2}) == ["`x['a']` is 1 in the file and missing here"]
    assert compare({"a": 1, "b": 2}, {"b": 2, "a": 1.0}) == []
    assert compare(True, 1) == ["`x` is True in the file and 1 here"]
    assert compare(np.nan, 1.0) == ["`x` is nan in the file and 1.0 here"]
    assert compare(weight, Plain(weight)) == ["`x` is weight in the file and Plain here"]
    assert compare(jnp.arange(3), jnp.arange(3.0)) == ["`x` is int32[3] in the file and float32[3] here"]
    assert compare(jnp.arange(3), jnp.asarray([0, 1, 5])) == ["`x.flat[2]` is 2 in the file and 5 here"]
    assert compare(jnp.asarray(1.0), jnp.asarray(2.0)) == ["`x` is 1.0 in the file and 2.0 here"]
    assert compare(jnp.zeros(2000), jnp.ones(2000)) == ["`x` has other values in the file than here: float32[2000]"]
    assert len(compare(list(range(99)), list(range(1, 100)))) == 5
    here, there = ({"type": f"{module}.Camera", "fields": {}} for module in ("a", "b"))
    assert differences(here, there, "x") == ["`x` is a.Camera in the file and b.Camera here"]


def test_differences_of_any_saved_data():
    here = describe({"a": [Camera(jnp.arange(3))]}, KINDS)
    deep = functools.reduce(lambda x, _: [x], range(100_000), 1)
    for saved in (
        deep,
        {"dict": deep},
        {"dict": [["a", deep]]},
        {"dict": [["a", {"list": [deep]}]]},
        10**5000,
        "\ud800",
    ):
        (text,) = differences(saved, here, "x")
        assert text.startswith("`x") and len(text) < 200 and "\n" not in text
    del text, saved
    while type(deep) is list:
        deep = deep[0]


struct = jax.ShapeDtypeStruct
TREES = [
    jnp.zeros(3),
    None,
    {"a": jnp.zeros(3), "b": [jnp.zeros((), jnp.int32), (jnp.zeros(2, jnp.bfloat16), None)]},
    Pose(jnp.zeros(3), jnp.zeros(2)),
    Camera(jnp.zeros((2, 2)), 3.0),
    {"camera": Camera(Pose(jnp.zeros(1), 1.5)), "odd": Odd(jnp.zeros(1), Odd())},
    collections.OrderedDict(b=jnp.zeros(1), a=jnp.zeros(2)),
    si.View(jnp.zeros((4, 2)), Pose(jnp.zeros(4), np.zeros(4, np.int8)), jnp.ones(4, bool)),
]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_structures_come_back(tree):
    expected = jax.tree.map(lambda x: struct(jnp.shape(x), jnp.result_type(x)), tree)
    node = through_json(encode_structure(tree, LIBRARY))
    assert node == encode_structure(expected, LIBRARY)
    alone = decode_structure(node, LIBRARY)
    assert same_structure(alone, tree) and same_structure(tree, alone) and same_structure(alone, alone)
    assert list(named_leaves(alone)) == list(named_leaves(tree)) and jax.tree.leaves(alone) == jax.tree.leaves(expected)
    assert list(named_leaves(alone)) == [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    # It can be saved again.
    assert encode_structure(alone, LIBRARY) == node


def test_library_nodes_come_back_as_such():
    tree = si.View(jnp.zeros((4, 2)), Pose(jnp.zeros(4), jnp.zeros(4)), jnp.ones(4, bool))
    got = decode_structure(encode_structure(tree, LIBRARY), LIBRARY)
    assert type(got) is si.View and got.mask == struct((4,), bool)
    assert type(got.params) is Opaque and got.params.name == f"{__name__}.Pose"
    assert jax.tree.map(lambda x: x.shape, got).params.children == ((4,), (4,))


def test_other_structures_are_told_apart():
    saved = decode_structure(encode_structure({"p": Pose(jnp.zeros(3), jnp.zeros(2))}, {}), {})
    assert same_structure(saved, {"p": Pose(jnp.zeros(3), jnp.zeros(2))})
    for other in (
        {"p": Pose(jnp.zeros(3), jnp.zeros(4))},
        {"p": Pose(jnp.zeros(3, int), jnp.zeros(2))},
        {"p": Pose(jnp.zeros(3))},
        {"p": (jnp.zeros(3), jnp.zeros(2))},
    ):
        assert not same_structure(other, saved)


def test_containers_of_the_library_come_back_whole():
    """A camera checks the values that it is given, and converts them; a structure has none."""
    camera = si.forward.Camera(jnp.eye(3), jnp.eye(4), (6, 8))
    field = si.forward.VoxelField(jnp.zeros((3, 3, 3)), jnp.zeros((3, 3, 3, 3)), density_scale=2.0)
    for tree in (camera, field, si.View(jnp.zeros((2, 3)), jax.tree.map(lambda x: jnp.stack([x, x]), camera))):
        expected = jax.tree.map(lambda x: struct(x.shape, x.dtype), tree)
        got = decode_structure(through_json(encode_structure(tree, CONTAINERS)), CONTAINERS)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        assert jax.tree.leaves(got) == jax.tree.leaves(expected)


def test_leaves_that_are_no_arrays_are_refused():
    for leaf in (jr.key(0), object(), "text", np.asarray([None])):
        with pytest.raises(ValueError, match="a leaf of type .*, which is no array of numbers; leave it out"):
            encode_structure({"a": leaf}, {})


@pytest.mark.parametrize(
    "node",
    [
        "text",
        {"struct": [10**18] * 40, "dtype": "float32"},
        {"struct": [-1], "dtype": "float32"},
        {"node": "x", "children": [["a", None], ["a", None]]},
        {"node": "x", "children": [["a", {"node": "x", "children": [["b", 1]]}], ["ab", 1]]},
        {"node": "x", "children": [["a" * 201, None]]},
        {"node": "x", "children": [["a"]]},
        {"node": None, "children": []},
        {"dict": [["a", 1], [1, 2]]},
        {"type": "View", "fields": {"observation": 1}},
        {"function": "weight"},
    ],
    ids=str,
)
def test_damaged_structures_are_refused(node):
    with pytest.raises(ValueError, match="`context` cannot be rebuilt from the file .*; use another copy.$") as caught:
        decode_structure(node, KINDS, name="context")
    assert "\n" not in str(caught.value)


def test_a_structure_takes_no_memory():
    node = {
        "type": "View",
        "fields": {"observation": {"struct": [10**12], "dtype": "float32"}} | dict.fromkeys(["params", "mask"]),
    }
    assert decode_structure(node, LIBRARY).observation.shape == (10**12,)
