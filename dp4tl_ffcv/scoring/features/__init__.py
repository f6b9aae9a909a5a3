"""Features: what a surrogate computes for each sample, in a folder."""
