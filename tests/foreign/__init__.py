"""transformers' own test suites, run on attached models: see `tests.foreign.__main__`."""
