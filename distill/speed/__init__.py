"""What `python -m benchmarks.speed` measures of this room: steps, the loss engine, caches and codecs."""
