"""Settings of the recipes, configurations by name, and the command line."""
