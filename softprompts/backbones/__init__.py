"""Frozen models: how they are loaded, quantised and sharded, and what is known of their modules."""
