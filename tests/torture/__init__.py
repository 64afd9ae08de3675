"""Long runs of a real provider under hostile load. `scripts/torture` starts them."""
