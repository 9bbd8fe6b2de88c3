"""Intents ranked for who has said nothing yet: the ranker, its metrics, and the reasoner's part of the loop."""
