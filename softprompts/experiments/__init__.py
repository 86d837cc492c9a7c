"""Experiments: a workbench, and comparison, search, transfer and multitask training on it."""
