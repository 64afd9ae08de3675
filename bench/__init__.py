"""Benchmarks: of the engine alone (`bench.run.engine`, `bench.micro`), and of the provider under load."""
