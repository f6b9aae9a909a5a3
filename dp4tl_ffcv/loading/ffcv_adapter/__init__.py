"""What ffcv's Loader requires: memory manager, reader, pipelines, compilation, iterator."""
