"""Side-by-side measurements against peers; results are recorded in README.md."""
