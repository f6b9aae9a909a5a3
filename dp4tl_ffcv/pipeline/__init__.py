"""Prune a source in one call: features, scores, selection, and a smaller beton."""
