"""Micro benchmarks under pytest-benchmark: `pytest bench/micro`. Each measures beside it what it is to be compared with."""
