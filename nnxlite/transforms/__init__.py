"""Object graphs through JAX's transforms: one boundary, and a shell for each."""
