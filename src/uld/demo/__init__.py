"""The demonstration: an invented world, two micro models that know it, and what becomes of them after unlearning."""
