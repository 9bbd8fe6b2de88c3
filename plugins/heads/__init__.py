"""Heads of the reward model."""
