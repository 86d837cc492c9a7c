"""Prompts in the formats of other libraries."""
