"""Benchmarks: of single pieces (`micro`), and of providers under load (`load`, `run`, `report`).

load <- run <- report <- endtoend, __main__     load: the processes that call, and the least that answers
  ^                                             run: launches and measures, and gives rows
micro                                           report: says what rows mean
"""
