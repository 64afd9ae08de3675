"""What a run says: figures, bars, tables, plots, comparisons."""
