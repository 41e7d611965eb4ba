"""Training over several devices, in parts, and in lower precision, against one device and whole batches."""

import os
import socket
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
import training
from refusals import without_annotations
from stochinv._training.state import accumulated, batch_loss, compute_dtype, trained_part

SCRIPT = """
    import sys
    import jax, jax.numpy as jnp, jax.random as jr, numpy as np
    import stochinv as si, training
    from stochinv._training import layout

    def bytes_on_one(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))

    def digits(**options):
        rng = np.random.default_rng(0)
        seen = rng.random((256, 1, 20)) < 0.5
        data = si.View(np.float32(rng.normal(size=seen.shape) * seen), seen)
        problem = si.StochasticInverseProblem(si.forward.Mask(), noise=0.3)
        settings = {"key": jr.key(0), "steps": 12, "rounds": 2, "batch_size": 32, "progress": False}
        return problem.fit(data, **settings | options)
"""


def run(script, devices, *arguments, wait=True):
    """Runs a script in a process of its own with so many devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        # Devices that wait for each other keep threads of one pool, which by itself has one for each.
        "NPROC": "64",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    code = textwrap.dedent(SCRIPT) + textwrap.dedent(script)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **pipes)
    return finish(process) if wait else process


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    assert "done" in output
    return output


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one():
    run(
        """
        one = digits()
        layout.LEAST_BYTES = 1
        mixed = jax.make_mesh((2, 4), ("data", "fsdp"))
        explicit = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Explicit,))
        for sharding in ("fsdp", mixed):
            many = digits(sharding=sharding)
            np.testing.assert_allclose(one.history.loss, many.history.loss, rtol=1e-5, err_msg=str(sharding))
            np.testing.assert_allclose(one.history.residual, many.history.residual, rtol=1e-5)
            weight = many.problem.denoiser.network.network.layers[0].inward.weight
            assert len(weight.sharding.device_set) == 8
            assert not weight.sharding.is_fully_replicated
        examples = training.examples(64)
        options = {"roles": None, "batch_size": 16}
        one = training.fit(training.problem(), examples, **options)
        for sharding in ("data", "fsdp", mixed, explicit):
            many = training.fit(training.problem(), examples, sharding=sharding, **options)
            np.testing.assert_allclose(one.history.loss, many.history.loss, rtol=1e-5)
        problem = training.problem(denoiser=training.RandomDenoiser(jr.key(5)), objective=si.ProperScore())
        one = training.fit(problem, examples, **options)
        draws = jax.make_mesh((2, 4), ("data", "draws"))
        many = training.fit(problem, examples, sharding=draws, **options)
        np.testing.assert_allclose(one.history.loss, many.history.loss, rtol=1e-5)
        try:
            training.fit(problem, examples, sharding=jax.make_mesh((1, 8), ("data", "draws")), **options)
        except ValueError as error:
            assert "`num_draws` of the objective is 4" in str(error)
        else:
            raise AssertionError
        print("done")
        """,
        8,
    )


@pytest.mark.slow
def test_parameters_and_the_optimiser_take_an_eighth():
    run(
        """
        from stochinv._training.loop import Run
        moving = {}
        begin = Run.run
        def run(self):
            result = begin(self)
            moving[len(moving)] = self._moving
            return result
        Run.run = run
        layout.LEAST_BYTES = 2**12
        digits(), digits(sharding="fsdp")
        whole, part = bytes_on_one(moving[0]), bytes_on_one(moving[1])
        print(whole, part)
        assert part <= whole / 6
        print("done")
        """,
        8,
    )


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_goes_on_with_two_and_with_one(tmp_path):
    first = """
        layout.LEAST_BYTES = 2**12
        def stop(progress):
            return progress.step >= 8
        digits(sharding="fsdp", checkpoint=sys.argv[1], callbacks=[stop], log_every=4)
        print("done")
    """
    then = """
        layout.LEAST_BYTES = 2**12
        from stochinv._training.checkpoint import Checkpoints
        restore = Checkpoints.restore
        def check(self, moving):
            (moving, kept), record = restore(self, moving)
            leaves = [np.asarray(x) for x in jax.tree.leaves(moving) if jnp.issubdtype(x.dtype, jnp.inexact)]
            print("sum", sum(float(np.float64(x).sum()) for x in leaves))
            return (moving, kept), record
        Checkpoints.restore = check
        fit = digits(sharding="fsdp" if jax.device_count() > 1 else None, checkpoint=sys.argv[1], resume=True)
        print("loss", fit.history.loss[-1])
        print("done")
    """
    outputs = []
    for devices in (2, 1):
        folder = tmp_path / str(devices)
        run(first, 8, folder)
        outputs.append(run(then, devices, folder).split("\n"))
    value = lambda lines, name: next(line.split()[1] for line in lines if line.startswith(name))
    # The parameters are those of the eight, to the last bit.
    assert value(outputs[0], "sum") == value(outputs[1], "sum")
    np.testing.assert_allclose(*(float(value(x, "loss")) for x in outputs), rtol=1e-4)


@pytest.mark.slow
def test_two_processes_feed_their_own_records(tmp_path):
    script = """
        number, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
        if port != "0":
            jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
        examples = training.examples(64)
        options = {"roles": None, "steps": 8}
        cut = lambda i, part: jax.tree.map(lambda x: np.asarray(x)[16 * i :][:16][part], examples)
        part = slice(8 * number, 8 * number + 8) if port != "0" else slice(None)
        batches = [cut(i % 4, part) for i in range(8)]
        given = {"sharding": "fsdp", "checkpoint": folder} if port != "0" else {}
        fit = training.fit(training.problem(), batches, **options, **given)
        np.savetxt(f"{folder}-{port}-{number}.txt", fit.history.loss)
        print("done")
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "run"
    for process in [run(script, 1, i, port, folder, wait=False) for i in range(2)]:
        finish(process)
    run(script, 1, 0, 0, folder)
    one, first, second = (np.loadtxt(f"{folder}-{name}.txt") for name in ("0-0", f"{port}-0", f"{port}-1"))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, one, rtol=1e-5)


@pytest.mark.slow
def test_where_a_process_dies_the_other_ends_and_both_go_on(tmp_path):
    script = """
        import os, time
        number, port, folder, dies = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "True"
        jax.distributed.initialize(f"127.0.0.1:{port}", 2, number, heartbeat_timeout_seconds=20)
        examples = training.examples(64)
        def batches():
            for i in range(8):
                if dies and i == 5 and number == 1:
                    os._exit(7)
                yield jax.tree.map(lambda x: np.asarray(x)[16 * (i % 4) + 8 * number :][:8], examples)
        options = {"roles": None, "steps": 8, "checkpoint": folder, "checkpoint_every": 2, "log_every": 1}
        fit = training.fit(training.problem(), batches(), sharding="data", **options)
        print("loss", *fit.history.loss)
        print("done")
    """

    def both(folder, dies):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return [run(script, 1, i, port, tmp_path / folder, dies, wait=False) for i in range(2)]

    alive, dead = both("broken", True)
    assert dead.wait(timeout=300) == 7
    output, _ = alive.communicate(timeout=60)
    assert alive.returncode != 0
    assert "the last good checkpoint is that of step 4" in output
    losses = lambda output: np.array(output.split("loss")[-1].split("done")[0].split(), float)
    resumed, whole = (losses(finish(both(folder, False)[0])) for folder in ("broken", "whole"))
    np.testing.assert_array_equal(resumed, whole)


@pytest.mark.slow
def test_draws_follow_the_mesh_that_is_set():
    run(
        """
        fit = digits()
        context = si.View(np.zeros((1, 20), np.float32), np.ones((1, 20), bool))
        draw = lambda: fit.problem.sample(context, key=jr.key(1), num_samples=128).signal
        alone = draw()
        with jax.set_mesh(jax.sharding.Mesh(jax.devices(), ("data",))):
            np.testing.assert_allclose(draw(), alone, atol=1e-4)
        with jax.set_mesh(jax.make_mesh((8,), ("data",))):
            np.testing.assert_allclose(draw(), alone, atol=1e-4)
        print("done")
        """,
        8,
    )


@pytest.mark.thorough
def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    problem = training.problem()
    state = si.init(problem, training.examples(16), key=jr.key(0), steps=4)
    params, rest = eqx.partition(state.problem, trained_part(state.problem))
    batch = jax.tree.map(jnp.asarray, training.examples(16))

    def whole(params):
        return batch_loss(eqx.combine(params, rest), None, batch, jr.key(1))

    def by_parts(number):
        from_keys = lambda params, records, keys: loss_of_parts(eqx.combine(params, rest), records, keys)
        return accumulated(jax.value_and_grad(from_keys, has_aux=True), params, batch, jr.key(1), number)

    (loss, _), gradient = jax.value_and_grad(whole, has_aux=True)(params)
    for number in (1, 4):
        (found, _), found_gradient = jax.jit(by_parts, static_argnums=0)(number)
        np.testing.assert_allclose(found, loss, rtol=1e-5)
        for x, y in zip(jax.tree.leaves(found_gradient), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def loss_of_parts(problem, records, keys):
    losses, parts = jax.vmap(lambda record, key: problem.loss(record, key=jr.split(key)[1]))(records, keys)
    return jnp.mean(losses), jax.tree.map(jnp.mean, parts)


@pytest.mark.thorough
def test_training_in_parts():
    examples = training.examples(64)
    whole = training.fit(training.problem(), examples, batch_size=16)
    parts = training.fit(training.problem(), examples, batch_size=16, accumulate=4)
    np.testing.assert_allclose(whole.history.loss, parts.history.loss, rtol=1e-4)


@pytest.mark.slow
def test_networks_compute_in_bfloat16_and_nothing_else_does():
    rng = np.random.default_rng(0)
    seen = rng.random((64, 1, 20)) < 0.5
    data = si.View(np.float32(rng.normal(size=seen.shape) * seen), seen)
    problem = si.StochasticInverseProblem(si.forward.Mask(), noise=0.3)
    options = {"key": jr.key(0), "steps": 6, "rounds": 2, "batch_size": 16, "progress": False}
    exact, low = (problem.fit(data, precision=x, **options) for x in ("float32", "bf16"))
    kinds = lambda tree: {x.dtype.name for x in jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))}
    assert kinds(low.problem.denoiser) == {"float32"}
    np.testing.assert_allclose(low.history.loss, exact.history.loss, rtol=0.02)
    assert low.history.loss[-1] != exact.history.loss[-1]
    assert kinds(compute_dtype(eqx.filter(low.problem.denoiser.network, eqx.is_inexact_array), "bf16")) == {"bfloat16"}


@pytest.mark.thorough
def test_what_is_laid_out():
    run(
        """
        from jax.sharding import PartitionSpec
        spec = lambda sharding, *shape: layout.as_layout(sharding).of(jax.ShapeDtypeStruct(shape, jnp.float32)).spec
        mixed = jax.make_mesh((2, 4), ("data", "fsdp"))
        # The largest axis that can be divided, of arrays of 4 MB or more.
        assert spec("fsdp", 16, 2**16) == PartitionSpec(None, "fsdp")
        assert spec("fsdp", 2**16, 17) == PartitionSpec("fsdp")
        assert spec("fsdp", 2**16, 15) == spec("fsdp", 2**11 + 1, 2**11 + 1) == PartitionSpec()
        assert spec("data", 16, 2**20) == PartitionSpec()
        assert spec(mixed, 2**16 + 4, 16) == PartitionSpec("fsdp")
        layout.check_divides(layout.as_layout(mixed), 16, 2)
        for sharding, accumulate in (("data", 4), (mixed, 3)):
            try:
                layout.check_divides(layout.as_layout(sharding), 16, accumulate)
            except ValueError as error:
                assert f"16, which cannot be dealt to 8 devices in {accumulate} parts" in str(error)
            else:
                raise AssertionError(sharding)
        print("done")
        """,
        8,
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sharding": "model"}, '`sharding` must be "data", "fsdp", a mesh'),
        ({"sharding": 4}, "`sharding` must be"),
        ({"precision": "float16"}, '`precision` must be "float32" or "bf16"'),
        ({"accumulate": 0}, "`accumulate`"),
        ({"accumulate": 3, "batch_size": 16}, "`accumulate` is 3, but `batch_size` is 16"),
    ],
)
def test_refusals(options, match):
    with pytest.raises(ValueError, match=match), without_annotations():
        training.fit(training.problem(), training.examples(64), **options)
