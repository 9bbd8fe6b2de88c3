"""The Gaussian reward model: its input, its likelihood, and how far it can be trusted."""
