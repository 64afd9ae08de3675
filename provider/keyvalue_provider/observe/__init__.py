"""Metrics, the HTTP endpoint and the log."""
