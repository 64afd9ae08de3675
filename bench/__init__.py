"""Benchmarks: of the engine alone (`bench.engine`, `bench.micro`), and of the provider under load."""
