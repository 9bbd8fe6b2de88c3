"""Files: whole or not at all, rows with their line in every error, journals of long jobs."""
