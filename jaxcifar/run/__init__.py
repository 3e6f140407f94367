"""The folder of a run: its lock, config.json, checkpoints, logs and picture."""
