"""The interfaces that ffcv's Loader requires: reader, memory manager, pipelines, iterator."""
