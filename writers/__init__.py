"""Writers: one module per source dataset, each turns it into betons (`python -m writers.NAME`)."""
