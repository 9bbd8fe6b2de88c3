"""Intervals and corrections, each in one place: numpy and scipy alone, nothing of clicks or models."""
