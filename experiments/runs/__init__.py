"""Reading the runs of a sweep: configs, results, statistics, and the original report's numbers."""
