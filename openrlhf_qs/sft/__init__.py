"""SFT: first suggestions, a teacher's candidates, and the assembly of three that are good and differ."""
