"""What is fast, and by how much: one module a benchmark, each prints JSON with its rate or its ratio."""
