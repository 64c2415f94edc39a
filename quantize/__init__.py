"""Integer weight formats: block quantisers, their exact inverse, and policies over tensors."""
