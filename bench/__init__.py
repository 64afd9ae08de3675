"""Benchmarks of single parts (`micro`) and of whole providers under load (`load`, `run`, `report`).

Each arrow points from the importing package to the imported package.

load <- run <- report <- endtoend, __main__     load: the load generator and the bare responder
  ^              ^                              run: launches processes, measures, and yields rows
  └─── micro ────┘                              report: turns rows into figures, tables and a picture
"""
