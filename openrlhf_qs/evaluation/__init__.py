"""Evaluation: policies side by side before users who click, and the report."""
