"""Judges: the users of the A/B test."""
