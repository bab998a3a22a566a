"""A run as files: its folder, its checkpoints and its metrics."""
