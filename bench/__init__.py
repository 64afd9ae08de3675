"""Benchmarks of single parts (`micro`), and of providers under load (`load`, `run`, `report`).

An arrow points from a package to the one that it imports.

load <- run <- report <- endtoend, __main__     load: the load generator and the bare responder
  ^                                             run: launches processes, measures, and yields rows
micro                                           report: turns rows into figures, tables and plots
"""
