"""Training: optimizers bound to models, and metrics."""
