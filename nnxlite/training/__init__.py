"""Training: optimizers bound to models, metrics, progress."""
