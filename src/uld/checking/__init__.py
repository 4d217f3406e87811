"""A run against a user's own questions, and the gate that it passes or fails."""
