"""SFT datasets: what the policy is first taught to write."""
