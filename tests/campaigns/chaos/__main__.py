"""Kill commands, and let storage fail: `python -m tests.campaigns.chaos [--quick] [--only NAME]`.

Prints a line per kind of case, and one for every fault. Exits with status 1 on a fault. Without
--quick, the counts are kept in tests/campaigns/results/chaos.jsonl.
"""

import argparse
import sys
from collections.abc import Iterator
from types import ModuleType

from .sandbox import enter

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="about a minute instead of half an hour"
    )
    parser.add_argument("--only", default="", metavar="NAME", help="kinds whose name contains NAME")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    work = enter()

    from .. import results
    from . import command_faults, disks, file_changes, kills, ranks, read_faults, studies
    from .faults import Shim
    from .verbs import Place, make_inputs, warm_up

    warm_up()
    place, shim = Place(work), Shim()

    def groups() -> Iterator[ModuleType]:
        yield studies  # makes its own inputs
        make_inputs(place)
        yield from (read_faults, file_changes, command_faults, disks, ranks, kills)

    lines = []
    for group in groups():
        for line in group.run(
            place, shim, arguments.seed, quick=arguments.quick, only=arguments.only
        ):
            lines.append(line)
            if not arguments.quick:
                results.keep(line)
    sys.exit(results.exit_status(lines))
