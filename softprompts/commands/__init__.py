"""The verbs of the command line, a file each; `softprompts.__main__` puts them together."""
