"""The verbs of the command line, one module each; libraries that take long to import are imported when a verb runs."""
