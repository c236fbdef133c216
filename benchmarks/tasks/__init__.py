"""Benchmarks as data: a small file says where a benchmark lies and what its lines mean, one reader reads them all."""
