"""Public archives of real clicks and judgements, as preference pairs."""
