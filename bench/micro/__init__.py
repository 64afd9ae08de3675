"""Micro-benchmarks under pytest-benchmark (`pytest bench/micro`), and a comparison of the store with a dict."""
