r"""Packages that some features alone need, imported when they are first used.

They would be half of the time of `import stochinv`. Import them from here and from nowhere else, and read their
attributes inside of functions: `from ._lazy import numpyro`, then `numpyro.distributions.Normal`.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any


class LazyModule(ModuleType):
    """A module that is imported when an attribute of it is first read.

    **Arguments:**

    - `name`: its absolute name.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


if TYPE_CHECKING:
    import numpyro as numpyro
    import orbax.checkpoint as orbax_checkpoint
    import scipy.special as scipy_special
    import tqdm.auto as tqdm_auto
else:
    numpyro = LazyModule("numpyro")
    orbax_checkpoint = LazyModule("orbax.checkpoint")
    scipy_special = LazyModule("scipy.special")
    tqdm_auto = LazyModule("tqdm.auto")


def optional(module: str, need: str, extra: str) -> Any:
    """A module of a package that only one feature needs, and that is not installed with the library.

    **Arguments:**

    - `module`: its absolute name.
    - `need`: what needs it, in words.
    - `extra`: the extra that has the package.

    **Raises:**

    `ImportError` if it is not installed, with the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{need}: `pip install 'stochinv[{extra}]'`.") from error


def is_distribution(x: Any) -> bool:
    """Whether this is a NumPyro distribution, as nothing is before NumPyro is imported."""
    return "numpyro" in sys.modules and isinstance(x, numpyro.distributions.Distribution)
