"""What the reward model learns from an impression."""
