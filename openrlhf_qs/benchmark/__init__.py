"""What is fast, and how much: one module a benchmark, each prints JSON with its ratio or rate (``openrlhf-qs benchmark NAME``)."""
