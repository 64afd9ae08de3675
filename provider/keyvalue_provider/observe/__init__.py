"""The metrics, the HTTP endpoint and the log."""
