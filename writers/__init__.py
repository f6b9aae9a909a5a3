"""Write betons from source datasets, one module per dataset.

`dp4tl write NAME`, or `python -m writers.NAME` in a clone, runs the writer `writers/NAME.py`. Each
writer has a docstring (its help text), a dataclass `Config` (its options), a function
`write(config)` that returns the `BetonIndex` of each beton, and ends by calling
`components.common.run`. Import what is slow to import inside functions, so that `--help` is fast.
"""
