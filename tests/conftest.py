import os
import shutil
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Half of the tests' time is compilation. What one process has compiled, the others and the next run read.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import jax
import pytest


def pytest_configure(config):
    # Quick and thorough tests compile much and compute little, the others are the other way round.
    if "not slow" in config.option.markexpr:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0".strip()


hypothesis.settings.register_profile(
    "stochinv",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("stochinv")


@pytest.fixture
def x64():
    """Double precision for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window."""
    executable = os.environ.get("STOCHINV_CHROMIUM") or shutil.which("chromium")
    if executable is None:
        pytest.fail("There is no Chromium: `apt-get install chromium`, or name another one in STOCHINV_CHROMIUM.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable)
        yield browser
        browser.close()


@pytest.fixture
def compiled_quickly():
    """Hardly optimised code for one test: for one that compiles much, computes little, and is slow all the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def clear_caches_between_modules():
    """Compiled code of a finished module is only a burden on memory."""
    yield
    jax.clear_caches()
