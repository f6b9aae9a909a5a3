"""Time scoring against the code that it replaces.

Both sides work on the same arrays with the same number of threads. Every figure compares their
results, and fails where the results differ.
"""

from benchmarks.harness.command import main

if __name__ == "__main__":
    main("scoring", __doc__)
