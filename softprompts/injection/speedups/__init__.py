"""What saves time or memory and leaves the numbers as they are, up to rounding; only `wiring` imports it."""
