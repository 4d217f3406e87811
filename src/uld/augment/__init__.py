"""Paraphrases and wrong answers for what is to be forgotten (the paper's D'f and D'r), and questions from documents."""
