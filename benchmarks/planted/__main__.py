"""Does it find the right classes? Run every method on targets whose relevant classes are known.

The source is `writers.digits`: ten digits in eight renderings. Each method scores its classes or
samples. The best are pretrained on, for as many epochs as the full source, and the network is
finetuned on the target. The next call reuses finished runs. `python -m benchmarks.harness.tables`
makes the tables and the plot of benchmarks/README.md from the results.
"""

from benchmarks.harness.command import main

if __name__ == "__main__":
    main("planted", __doc__)
