"""The parts of a run: its plan (scenarios, experiments, subjects), processes (stage, processes) and results (rows)."""
