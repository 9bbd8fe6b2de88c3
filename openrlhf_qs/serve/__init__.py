"""Suggestions in real chats, and their clicks back into a log."""
