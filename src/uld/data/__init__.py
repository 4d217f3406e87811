"""Records, prompts, tokens and batches."""
