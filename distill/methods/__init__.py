"""Training methods: each is a loss over a batch, and nothing about loops or files."""
