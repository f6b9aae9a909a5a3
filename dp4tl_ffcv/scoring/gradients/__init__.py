"""Per-sample gradient norms."""
