"""Clicks: logs read, checked, split, and made into what the later stages train on."""
