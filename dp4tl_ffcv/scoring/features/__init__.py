"""Features: a surrogate's outputs for each sample, in a folder."""
