"""The composite reward: parts, normalisation, fusion, and the monitors that watch it in GRPO."""
