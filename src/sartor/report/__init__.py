"""A run's journal rendered for people. Pure: reads `run.jsonl`, measures nothing."""
