"""SFT: first suggestions, a teacher's candidates, and the assembly of those that are good and differ."""
