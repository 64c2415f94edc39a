"""Runs exported models: our C library, onnxruntime and LiteRT behind one Session."""
