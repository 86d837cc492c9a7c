"""Files: saved prompts, run folders, locks, and the model hub. Nothing here knows a model."""
