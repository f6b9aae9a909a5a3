"""Studies: their stages, the order in which stages run, and their results."""
