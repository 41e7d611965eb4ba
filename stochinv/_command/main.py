r"""The program `stochinv`, which is `python -m stochinv` too."""

import sys
from collections.abc import Sequence

import tyro

from ..report import write_report
from .check import check
from .files import Refusal
from .new import new

ABOUT = "Posterior samplers for inverse problems, trained from measurements alone."


def main(arguments: Sequence[str] | None = None):
    """Runs a subcommand.

    The exit status is 0, or 1 for a forward model that is not fit, or 2 where the command refuses what it was given.

    **Arguments:**

    - `arguments`: those of the command line; `None` for the ones that the program was started with.
    """
    commands = {"new": new, "check": check, "report": write_report}
    try:
        fit = tyro.extras.subcommand_cli_from_dict(commands, prog="stochinv", description=ABOUT, args=arguments)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(2)
    if fit is False:
        sys.exit(1)
