"""Unlearning methods, one small file each."""
