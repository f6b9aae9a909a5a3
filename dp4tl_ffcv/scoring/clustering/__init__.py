"""Clusters of source features: pseudo-classes for a source without labels."""
