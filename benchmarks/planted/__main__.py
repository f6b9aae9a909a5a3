"""Test whether each method finds the relevant classes, on targets for which they are known.

The source is `writers.digits`: ten digits in eight renderings. Each method scores its classes or
samples. A network is pretrained on the best, for as many epochs as on the full source, and
finetuned on the target. The next call reuses finished runs. `python -m benchmarks.harness.tables`
makes the tables and the plot of benchmarks/README.md from the results.
"""

from benchmarks.harness.command import main

if __name__ == "__main__":
    main("planted", __doc__)
