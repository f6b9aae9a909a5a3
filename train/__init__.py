"""Recipes to read, run (`dp4tl NAME`, `python -m train.NAME`) and fork."""

import os

# GNU OpenMP's threads spin for milliseconds at every barrier. When other work runs on the same
# cores, that time is lost. 10,000 turns are enough. OpenMP reads this when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
