"""From settings and data to a run."""
