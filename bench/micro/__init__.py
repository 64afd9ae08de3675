"""Micro benchmarks under pytest-benchmark (`pytest bench/micro`), and the store beside a dict. Each measures beside it what it is compared with."""
