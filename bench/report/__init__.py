"""Reports on a run: figures, bars, tables, plots and comparisons."""
