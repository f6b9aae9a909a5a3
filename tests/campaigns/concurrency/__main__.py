"""Processes and threads that meet: `python -m tests.campaigns.concurrency [--quick] [--only NAME]`.

Two processes make the same output; loaders run in turn, in threads, beside a DataLoader and around
forks, in each of numba's threading layers. Exits with status 1 on a fault.
"""

import argparse
import sys

from ..chaos.sandbox import enter

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="concurrency", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute instead of minutes")
    parser.add_argument("--only", default="", metavar="NAME", help="kinds whose name contains NAME")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    work = enter()

    from .. import results
    from ..chaos.verbs import Place, make_inputs, warm_up
    from . import layers, pairs

    warm_up()
    place = Place(work)
    make_inputs(place)
    lines = []
    for group in (pairs, layers):
        for line in group.run(place, arguments.seed, quick=arguments.quick, only=arguments.only):
            lines.append(line)
            if not arguments.quick:
                results.keep(line)
    sys.exit(results.exit_status(lines))
