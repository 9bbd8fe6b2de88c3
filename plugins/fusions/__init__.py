"""Fusions: the weights of the composite reward."""
