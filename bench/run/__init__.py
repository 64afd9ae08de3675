"""Runs: processes, stages, scenarios, and what is measured of them."""
