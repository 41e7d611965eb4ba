"""Where training records come from."""

from ._simulate import simulate as simulate
