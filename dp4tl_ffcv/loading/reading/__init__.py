"""Reading: byte ranges of the samples, the plan of an epoch, reads, shared memory."""
