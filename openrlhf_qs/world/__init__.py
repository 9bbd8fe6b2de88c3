"""The built-in world: simulated users, their language, and the click log they leave."""
