"""Public benchmarks in the files that they are handed out in."""
