"""How the soft prompts of a batch enter a running model; knows no file, no task and no method."""
