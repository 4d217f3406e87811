"""The target, its assistants and the unlearned model that they make."""
