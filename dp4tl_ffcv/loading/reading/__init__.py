"""What is read when: byte ranges, plans of an epoch, positional reads, shared memory."""
