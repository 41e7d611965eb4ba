"""What is drawn, read back from the figures."""

import copy
import pickle
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

import stochinv as si
from refusals import refuse

pytest.importorskip("matplotlib")

RNG = np.random.default_rng(0)
RECORDS, DRAWS, SHAPE = 3, 4, (6, 5, 1)


@pytest.fixture(autouse=True)
def no_state_of_pyplot():
    """No figure is left with pyplot, which would keep it alive."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def normal(*shape):
    return RNG.normal(size=shape)


def grid(figure, rows):
    """The axes of the pictures, and those of the colour bars."""
    pictures = [ax for ax in figure.axes if ax.get_subplotspec() is not None]
    return np.reshape(pictures, (rows, -1)), figure.axes[len(pictures) :]


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def titles(axes):
    return [ax.get_title() for ax in axes]


# --- Pictures.


def some_columns():
    draws = normal(RECORDS, DRAWS, *SHAPE)
    return {"given": draws[:, 0], "draws": draws, "std": draws.std(1), "truth": jnp.asarray(normal(RECORDS, *SHAPE))}


def test_images_are_where_they_belong():
    columns = some_columns()
    axes, bars = grid(si.plot.images(columns, own_scale="std", num_records=2, num_draws=3), 2)
    assert titles(axes[0]) == ["given", "", "draws", "", "std", "truth"]
    assert not any(titles(axes[1])) and len(bars) == 1
    for record, row in enumerate(axes):
        expected = [columns["given"][record], *columns["draws"][record, :3], columns["std"][record]]
        for ax, picture in zip(row, [*expected, columns["truth"][record]], strict=True):
            np.testing.assert_array_equal(shown(ax), picture[..., 0])


def test_pictures_of_a_row_share_a_scale_and_a_column_can_have_its_own():
    columns = some_columns()
    axes, bars = grid(si.plot.images(columns, own_scale=["std"]), RECORDS)
    for record, row in enumerate(axes):
        comparable = [np.asarray(columns[name][record]) for name in ("given", "draws", "truth")]
        limits = min(x.min() for x in comparable), max(x.max() for x in comparable)
        assert {ax.images[0].get_clim() for ax in (*row[:5], row[6])} == {limits}
        assert row[5].images[0].get_clim() == (0, columns["std"].max())
    assert bars[0].get_xlim() == (0, columns["std"].max())
    assert {ax.images[0].get_cmap().name for ax in axes[:, 5]} == {"magma"}


def test_a_scale_of_signed_values_is_symmetric():
    residual = normal(2, *SHAPE)
    axes, _ = grid(si.plot.images({"residual": residual}, own_scale="residual"), 2)
    largest = np.abs(residual).max()
    assert {ax.images[0].get_clim() for ax in axes.flat} == {(-largest, largest)}


def test_limits_are_those_given():
    columns = some_columns()
    axes, _ = grid(si.plot.images(columns, own_scale="std", limits=(-1, 2.5)), RECORDS)
    assert {ax.images[0].get_clim() for ax in (*axes[:, :5].flat, *axes[:, 6])} == {(-1.0, 2.5)}
    assert axes[0, 5].images[0].get_clim() == (0, columns["std"].max())


def test_colours():
    """Clipped to the limits; what is not known is transparent, so that the background shows."""
    picture = np.full((1, 2, 2, 3), 0.25)
    picture[0, 0, 0], picture[0, 1, 1] = np.nan, (2, 0.5, -1)
    axes, _ = grid(si.plot.images({"a": picture}), 1)
    known = np.array([[0, 1], [1, 1]])
    np.testing.assert_array_equal(shown(axes[0, 0])[..., 3], known)
    np.testing.assert_allclose(shown(axes[0, 0])[known > 0, :3], [[0.25] * 3, [0.25] * 3, [1, 0.5, 0]])
    axes, _ = grid(si.plot.images({"a": (255 * np.ones((1, 2, 2, 3))).astype(np.uint8)}, limits=(0, 255)), 1)
    np.testing.assert_array_equal(shown(axes[0, 0]), 1)


def test_three_channels_apart_are_their_root_mean_square():
    x = normal(2, 6, 5, 3)
    axes, _ = grid(si.plot.images({"a": x}, own_scale="a"), 2)
    np.testing.assert_allclose(shown(axes[1, 0]), np.sqrt((x[1] ** 2).mean(-1)))


def test_complex_pictures_have_rows_of_magnitudes_and_of_phases():
    x = normal(2, 3, *SHAPE) + 1j * normal(2, 3, *SHAPE)
    figure = si.plot.images({"draws": jnp.asarray(x), "std": np.std(x, 1)}, own_scale="std")
    axes, bars = grid(figure, 4)
    for record in range(2):
        np.testing.assert_allclose(shown(axes[2 * record, 1]), np.abs(x[record, 1, ..., 0]), rtol=1e-6)
        np.testing.assert_allclose(shown(axes[2 * record + 1, 1]), np.angle(x[record, 1, ..., 0]), rtol=1e-5)
        assert axes[2 * record, 0].images[0].get_clim() == pytest.approx(
            (np.abs(x[record]).min(), np.abs(x[record]).max()), rel=1e-6
        )
        assert not axes[2 * record + 1, 3].images and axes[2 * record, 3].images
    phases = [ax.images[0] for ax in axes[1::2, :3].flat]
    assert {x.get_clim() for x in phases} == {(-np.pi, np.pi)} and {x.get_cmap().name for x in phases} == {"twilight"}
    assert len(bars) == 2


def test_pictures_of_one_value_and_of_none():
    axes, _ = grid(si.plot.images({"zero": np.zeros((1, *SHAPE)), "unknown": np.full((1, *SHAPE), np.nan)}), 1)
    assert np.ma.getmaskarray(axes[0, 1].images[0].get_array()).all()
    figure = si.plot.images({"unknown": np.full((1, *SHAPE), np.nan), "zero": np.zeros((1, *SHAPE))}, own_scale="zero")
    figure.canvas.draw()


PICTURE = np.zeros((RECORDS, *SHAPE), np.float32)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ([[PICTURE]], {}, "`columns` must be a dictionary"),
        ([{}], {}, "`columns` is empty"),
        ([{"a": PICTURE[..., 0]}], {}, r"`columns\['a'\]` must be pictures.*got shape \(3, 6, 5\)"),
        ([{"a": np.zeros((1, 6, 5, 2))}], {}, r"1 or 3 channels, got shape \(1, 6, 5, 2\)"),
        ([{"a": np.zeros((1, 6, 5, 3), np.complex64)}], {}, r"1 channel, got shape"),
        ([{"a": np.zeros((0, 6, 5, 1))}], {}, r"got shape \(0, 6, 5, 1\)"),
        ([{"a": [["x"]]}], {}, r"`columns\['a'\]\[0\]\[0\]` is 'x'"),
        ([{"a": PICTURE, "b": PICTURE[:2]}], {}, r"equally many records each, got \{'a': 3, 'b': 2\}"),
        ([{"a": PICTURE}], {"own_scale": "b"}, r"`own_scale` names \['b'\], but `columns` has \['a'\]"),
        ([{"a": PICTURE}], {"own_scale": True}, "`own_scale` must be a title, or several, got True"),
        ([{"a": PICTURE}], {"limits": (1, 0)}, r"`limits` must be a pair .*got 0"),
        ([{"a": PICTURE}], {"limits": 1.0}, "`limits` must be a pair"),
        ([{"a": PICTURE}], {"num_records": 0}, "`num_records` must be an integer of at least 1, got 0"),
        ([{"a": PICTURE}], {"num_draws": 1.5}, "`num_draws` must be an integer of at least 1, got 1.5"),
        ([{"a": np.zeros((1, 6, 5, 3), np.uint8)}], {}, "`limits` is None, but .* uint8; give"),
    ],
)
def test_images_refuse(arguments, options, message):
    refuse(lambda: si.plot.images(*arguments, **options), message)


# --- Signals of few numbers.


def some_signals(*leading):
    return {"mass": normal(*leading), "place": jnp.asarray(normal(*leading, 2))}


def test_corner_shows_every_pair():
    draws, reference, truth = some_signals(500), some_signals(700), some_signals()
    figure = si.plot.corner(draws, reference=reference, truth=truth)
    axes = np.reshape(figure.axes, (3, 3))
    columns = [draws["mass"], *np.asarray(draws["place"]).T]
    names = ["mass", "place[0]", "place[1]"]
    true = [float(truth["mass"]), *np.asarray(truth["place"], np.float64)]
    assert [ax.get_xlabel() for ax in axes[-1]] == names
    assert [ax.get_ylabel() for ax in axes[1:, 0]] == names[1:]
    for row in range(3):
        for column in range(3):
            ax = axes[row, column]
            assert ax.axison == (row >= column)
            if row > column:
                np.testing.assert_array_equal(ax.lines[0].get_xydata().T, [columns[column], columns[row]])
                assert ax.lines[1].get_xdata()[0] == true[column] and ax.lines[2].get_ydata()[0] == true[row]
                assert len(ax.collections) == 1
    assert axes[2, 0].get_xlim() == axes[0, 0].get_xlim() and axes[2, 0].get_ylim() == axes[2, 2].get_xlim()
    assert [x.get_text() for x in axes[0, 2].get_legend().get_texts()] == ["draws", "reference", "truth"]


def test_histograms_are_densities_of_each_entry():
    draws = normal(800, 1)
    figure = si.plot.corner(draws, names=["position"])
    (ax,) = figure.axes
    corners = ax.patches[0].get_xy()
    edges, heights = np.unique(corners[:, 0]), corners[1:-1:2, 1]
    expected, _ = np.histogram(draws[:, 0], edges, density=True)
    np.testing.assert_allclose(heights, expected)
    assert len(edges) - 1 == round(2 * 800 ** (1 / 3)) and edges[0] < draws.min() and edges[-1] > draws.max()
    assert ax.get_xlabel() == "position"


def test_contours_hold_the_shares_of_the_reference_that_they_say():
    """To two hundredths: contours are straight within a bin, of which there are 54 to a side."""
    reference = normal(20_000, 2) @ np.array([[1, 0.8], [0, 0.6]])
    axes = np.reshape(si.plot.corner(reference, reference=reference).axes, (2, 2))
    outer, inner = axes[1, 0].collections[0].get_paths()
    assert np.mean(outer.contains_points(reference)) == pytest.approx(0.9, abs=0.02)
    assert np.mean(inner.contains_points(reference)) == pytest.approx(0.5, abs=0.02)


def test_corner_of_complex_constant_and_many_draws():
    figure = si.plot.corner(normal(5000, 1) + 1j)
    axes = np.reshape(figure.axes, (2, 2))
    assert [ax.get_xlabel() for ax in axes[-1]] == ["re entry 0", "im entry 0"]
    assert 1000 < len(axes[1, 0].lines[0].get_xdata()) <= 2000
    si.plot.corner(np.ones((50, 2)), reference=np.ones((50, 2))).canvas.draw()


def test_recovery_shows_means_and_intervals():
    truth = {"mass": normal(30), "place": normal(30, 2)}
    draws = jax.tree.map(lambda x: x[:, None] + normal(30, 40, *x.shape[1:]), truth)
    figure = si.plot.recovery(draws, truth, level=0.8)
    ax = figure.axes[2]
    known, drawn = truth["place"][:, 1], draws["place"][..., 1]
    np.testing.assert_allclose(ax.lines[1].get_xydata(), np.stack([known, drawn.mean(1)], -1))
    low, high = np.quantile(drawn, [0.1, 0.9], axis=1)
    ends = np.stack([x.vertices for x in ax.collections[0].get_paths()])
    np.testing.assert_allclose(ends[:, :, 1], np.stack([low, high], -1))
    held = np.mean((low <= known) & (known <= high))
    assert ax.get_title() == f"place[1]\n{held:.0%} hold the truth" and ax.get_xlim() == ax.get_ylim()


def test_recovery_of_many_entries_in_rows():
    figure = si.plot.recovery(normal(5, 6, 7), normal(5, 7))
    assert [ax.axison for ax in figure.axes] == [True] * 7 + [False]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: si.plot.corner(np.zeros((5, 11))), "`draws` has 11 entries, of which at most 10"),
        (lambda: si.plot.corner({"a": np.zeros(5), "b": np.zeros(4)}), r"equal axes \(draws\), got \[\(4,\), \(5,\)\]"),
        (lambda: si.plot.corner({"a": np.zeros(5), "b": 1.0}), r"`draws\['b'\]` must have shape \(draws, ...\)"),
        (lambda: si.plot.corner({}), "`draws` must have arrays"),
        (lambda: si.plot.corner(np.zeros((0, 2))), r"got shape \(0, 2\)"),
        (lambda: si.plot.corner(np.array([[1.0, np.nan]])), "`draws` has 1 NaN"),
        (lambda: si.plot.corner(np.zeros((5, 2)), truth=np.zeros(3)), "`truth` must be a signal like those of `draws`"),
        (lambda: si.plot.corner(np.zeros((5, 2)), reference={"a": np.zeros(5)}), r"`reference` must.*got \['a'\]"),
        (lambda: si.plot.corner(np.zeros((5, 2)), names=["a"]), r"`names` must be 2 strings.*got \['a'\]"),
        (lambda: si.plot.corner(np.zeros((5, 2)), names="ab"), "`names` must be 2 strings"),
        (lambda: si.plot.recovery(np.zeros((5, 4)), np.zeros(6)), "`truth` has 6 records, but `draws` has 5"),
        (lambda: si.plot.recovery(np.zeros((5, 4, 2)), np.zeros(5)), "`truth` must be a signal like"),
        (lambda: si.plot.recovery(np.zeros((5, 4, 25)), np.zeros((5, 25))), "`draws` has 25 entries"),
        (lambda: si.plot.recovery(np.zeros(5), np.zeros(5)), r"must have shape \(records, draws, ...\)"),
        (lambda: si.plot.recovery(np.zeros((5, 4)), np.zeros(5), level=90), "`level` must be .* got 90"),
    ],
)
def test_entries_refuse(call, message):
    refuse(call, message)


# --- Predictions.


@pytest.mark.parametrize("shape", [(20,), (2, 20)])
def test_series_lie_in_bands(shape):
    predictions, observation = normal(200, *shape), normal(*shape)
    figure = si.plot.predicted(jnp.asarray(predictions), observation, noise=0.5)
    views = np.reshape(observation, (-1, 20))
    axes = np.reshape(figure.axes, (len(views), 2))
    for view, (left, right) in enumerate(axes):
        drawn = np.reshape(predictions, (200, -1, 20))[:, view]
        np.testing.assert_array_equal(left.lines[0].get_ydata(), views[view])
        for band, ends in zip(left.collections, [(0.05, 0.95), (0.25, 0.75)], strict=True):
            low, high = np.quantile(drawn, ends, axis=0)
            vertices = band.get_paths()[0].vertices[:, 1]
            assert vertices.min() == pytest.approx(low.min(), abs=1e-5)
            assert vertices.max() == pytest.approx(high.max(), abs=1e-5)
        # Means in single precision.
        np.testing.assert_allclose(right.lines[1].get_ydata(), (views[view] - drawn.mean(0)) / 0.5, atol=1e-5)


def test_complex_series_have_rows_of_both_parts():
    predictions, observation = normal(50, 8) + 1j * normal(50, 8), normal(8) + 1j * normal(8)
    axes = np.reshape(si.plot.predicted(predictions, observation, noise=0.1).axes, (2, 2))
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["re", "im"]
    np.testing.assert_array_equal(axes[1, 0].lines[0].get_ydata(), observation.imag)
    residual = (observation - predictions.mean(0)).imag / 0.1
    np.testing.assert_allclose(axes[1, 1].lines[1].get_ydata(), residual, rtol=1e-4, atol=1e-4)


def test_pictures_stand_beside_their_predictions():
    predictions, observation = 5 + normal(6, *SHAPE), np.abs(normal(*SHAPE))
    figure = si.plot.predicted(predictions, observation, noise=si.PoissonNoise(gain=0.5))
    axes, bars = grid(figure, 1)
    mean = predictions.mean(0)
    np.testing.assert_array_equal(shown(axes[0, 0]), observation[..., 0])
    np.testing.assert_allclose(shown(axes[0, 1]), mean[..., 0])
    np.testing.assert_array_equal(shown(axes[0, 3]), predictions[1, ..., 0])
    # A count of rate `mean / gain`, times the gain.
    np.testing.assert_allclose(shown(axes[0, -1]), ((observation - mean) / np.sqrt(0.5 * mean))[..., 0], rtol=1e-4)
    assert axes.shape == (1, 7) and len(bars) == 1


def test_complex_pictures_and_views_of_them():
    shape = (2, *SHAPE)
    predictions, observation = normal(5, *shape) + 1j * normal(5, *shape), normal(*shape) + 1j * normal(*shape)
    axes, _ = grid(si.plot.predicted(predictions, observation, noise=0.2), 4)
    residual = np.abs(observation - predictions.mean(0)) / 0.2 / np.sqrt(2)
    np.testing.assert_allclose(shown(axes[2, -1]), residual[1, ..., 0], rtol=1e-4)


def test_noise_of_zero_rate_tells_no_residual():
    predictions, observation = np.zeros((3, 4), np.float32), np.arange(4.0)
    right = si.plot.predicted(predictions, observation, noise=si.PoissonNoise()).axes[1]
    assert np.isnan(right.lines[1].get_ydata()).all()


@pytest.mark.parametrize(
    "predictions, observation, noise, message",
    [
        (np.zeros((5, 4)), np.zeros(3), 0.1, r"`predictions` must be at least 2 draws of shape \(draws, 3\)"),
        (np.zeros((1, 4)), np.zeros(4), 0.1, r"at least 2 draws .* got shape \(1, 4\)"),
        (np.zeros((5, 2, 3, 4)), np.zeros((2, 3, 4)), 0.1, r"`observation` must .* 1 or 3 channels, got \(2, 3, 4\)"),
        (np.zeros(5), np.zeros(()), 0.1, r"`observation` must have shape .* got \(\)"),
        (np.zeros((5, 2)), np.array([0, np.nan]), 0.1, "`observation` has 1 NaN"),
        (np.zeros((5, 2)), np.zeros(2, complex), 0.1, "`predictions` must be complex if .* float64 and complex128"),
        (np.zeros((5, 4)), np.zeros(4), 0.0, r"`noise` is GaussianNoise\(0.0\), whose standard deviation is 0"),
        (np.zeros((5, 4)), np.zeros(4), "x", "`noise` must be a number, got 'x'"),
    ],
)
def test_predicted_refuses(predictions, observation, noise, message):
    # The mean of the predictions is asked for its noise by JAX.
    refuse(lambda: si.plot.predicted(predictions, observation, noise=noise), message, compiles=True)


# --- Training and calibration.


def test_history_of_measurement_space():
    history = si.History(loss=[3.0, 2.0, 1.5], validation_steps=[1, 3], validation_loss=[2.5, 2.0])
    (ax,) = si.plot.history(history).axes
    assert ax.get_yscale() == "log" and ax.get_title() == "loss"
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 3], [2, 2], [3, 1.5]])
    np.testing.assert_array_equal(ax.lines[2].get_xydata(), [[1, 2.5], [3, 2]])


def test_history_of_rounds():
    coverage = [[0.4, 0.7, 0.8], [0.5, 0.8, 0.9]]
    history = si.History(loss=list(normal(400)), residual=[2.0], score=[3.0, 2.0], coverage=coverage)
    figure = si.plot.history(history)
    assert titles(figure.axes) == [
        "loss",
        "residual, noise stds",
        "score of held-out records",
        "coverage of held-out records",
    ]
    loss, residual, score, covered = figure.axes
    assert loss.get_yscale() == "linear"
    smooth = loss.lines[1].get_xydata()
    # Means over 10 steps, in their middle.
    np.testing.assert_allclose(smooth[3], [8.5, np.mean(history.loss[3:13])])
    assert residual.lines[0].get_ydata() == [1, 1] and list(residual.lines[1].get_ydata()) == [2.0]
    np.testing.assert_array_equal(score.lines[0].get_xydata(), [[1, 3], [2, 2]])
    np.testing.assert_array_equal([x.get_ydata() for x in covered.lines[3:]], np.transpose(coverage))
    assert [x.get_label() for x in covered.lines[3:]] == ["50% intervals", "80% intervals", "90% intervals"]


def test_history_refuses():
    refuse(lambda: si.plot.history([1.0]), r"`history` must be a `History`, such as `fit.history`, got \[1.0\]")
    refuse(lambda: si.plot.history(si.History()), "`history` is History.0 steps in 0 s., but must hold a step")


def test_calibration_draws_what_was_found():
    result = si.diagnostics.sbc_ranks(normal(50, 20, 2), normal(50, 2), key=jr.key(0), num_simulations=200)
    left, right = si.plot.calibration(result).axes
    np.testing.assert_array_equal(left.lines[1].get_ydata()[1:-1], result.ecdf_difference[:, 1])
    np.testing.assert_array_equal(right.lines[2].get_xydata(), np.stack([result.levels, result.coverage[:, 1]], -1))
    upper = right.collections[0].get_paths()[0].vertices[:, 1].max()
    assert upper == result.coverage_band.max()


def test_calibration_of_measurements_has_projections_too():
    ranks = si.diagnostics.sbc_ranks(normal(50, 20, 2), normal(50, 2), key=jr.key(0), num_simulations=200)
    levels, points = np.array([0.5, 0.9]), np.array([0.25, 0.5, 0.75])
    result = si.diagnostics.MeasurementCalibration(
        levels=levels,
        coverage=levels - 0.1,
        coverage_band=np.stack([levels - 0.2, levels]),
        record_coverage=np.tile(levels, (4, 1)),
        points=points,
        ecdf_difference=0 * points,
        ecdf_band=np.stack([-points, points]),
        coverage_p_value=0.5,
        ecdf_p_value=0.5,
        projections=ranks,
        confidence=0.95,
    )
    entries, coverage, projections = si.plot.calibration(result).axes
    assert entries.get_title() == "p = 0.5"
    np.testing.assert_array_equal(coverage.lines[1].get_ydata(), levels - 0.1)
    np.testing.assert_array_equal(projections.lines[0].get_ydata()[1:-1], ranks.ecdf_difference[:, 0])
    assert projections.get_xlabel() == "fractional rank of random projections"


def test_calibration_refuses():
    refuse(lambda: si.plot.calibration(np.zeros(3)), "`result` must be a result of `sbc_ranks`, `tarp` or")


# --- Figures.


def test_figures_show_themselves_without_pyplot():
    """As notebooks ask any object, also after a copy and on disk; and no further axes come with it."""
    figure = si.plot.corner(normal(20, 2))
    for same in (figure, copy.deepcopy(figure), pickle.loads(pickle.dumps(figure))):
        assert same._repr_png_().startswith(b"\x89PNG")
        assert same._repr_png_.args[0] is same


def test_what_is_missing_without_matplotlib_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"Plots need Matplotlib: `pip install 'stochinv\[plot\]'`\."):
        si.plot.corner(normal(20, 2))
