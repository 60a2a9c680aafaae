"""Training: pure losses, batches, and a thin trainer; the only room with code that trains."""
