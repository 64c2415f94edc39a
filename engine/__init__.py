"""What a model is, and how it runs in JAX. Importing this package imports nothing heavy."""
