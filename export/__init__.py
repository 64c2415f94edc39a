"""Lowers a checkpoint to GGUF, ONNX and TFLite, and verifies every file it writes."""
