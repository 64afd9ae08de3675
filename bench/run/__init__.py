"""A run: the plan (scenarios, experiments, subjects), the processes (stage, processes), and the results (rows)."""
