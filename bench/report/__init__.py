"""Reports on runs: tables, plots, comparisons of two runs, and checks against performance goals (bars)."""
