"""Make a language model unlearn chosen documents without touching its weights (Unlearning from Logit Difference)."""

__version__ = "0.1.0"
