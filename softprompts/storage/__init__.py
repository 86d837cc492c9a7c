"""What is on disk: files written whole, run folders, saved prompts, locks, and prompts on the hub."""
