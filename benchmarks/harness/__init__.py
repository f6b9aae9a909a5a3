"""What benchmarks share: alternation, JSON lines, datasets, tables."""
