"""Reports on runs: tables, a picture, comparisons of two runs, and checks against performance goals (bars)."""
