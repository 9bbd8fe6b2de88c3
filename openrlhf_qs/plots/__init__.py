"""Plots in one style that several stages draw. They take plain numbers and know nothing of stages."""
