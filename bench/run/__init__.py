"""A run: what is measured (scenarios, experiments, subjects), with what (stage, processes), and what it gives (rows)."""
