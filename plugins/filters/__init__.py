"""Filters: what a server does not show, and why."""
