"""Benchmarks: recipes become grids of runs, runs become lanes, results become tables and a report."""
