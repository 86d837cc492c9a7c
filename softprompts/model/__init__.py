"""The object that users hold, and all formats that it is read from and written to."""
