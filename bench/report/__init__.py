"""Reports of a run: figures, bars, tables, plots and comparisons."""
