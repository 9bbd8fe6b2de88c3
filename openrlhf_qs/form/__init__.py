"""What is asked and answered: conversations, prompts, and the text of a response."""
