"""Attention with a prefix in front of keys and values, as kernels of transformers."""
