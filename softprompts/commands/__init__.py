"""The verbs of the command line, a file each; `softprompts.cli` puts them together."""
