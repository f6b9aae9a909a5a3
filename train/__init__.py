"""Recipes to read, run and fork (`python -m train.NAME`)."""

import os

# GNU OpenMP's threads spin for milliseconds at every barrier and so take the cores from each other
# when anything else runs there; ten thousand turns are enough. Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
