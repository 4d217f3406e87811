"""The page of `uld playground`: target and unlearned model side by side."""
