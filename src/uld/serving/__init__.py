"""Unlearned models for others to use."""
