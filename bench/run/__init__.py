"""A run: what it measures (plan, scenarios, experiments, subjects), its processes (stage), and its results (rows)."""
