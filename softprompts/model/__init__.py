"""The object that users hold, and all formats that its prompts are read from and written to."""
