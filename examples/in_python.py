"""Answers of a run's target and of the unlearned model, for several margins: ``python in_python.py RUN QUESTION…``."""

import sys
from typing import Any

import uld
from uld.data.prompt import PromptFormat
from uld.model.generate import generate_answers

run, *questions = sys.argv[1:]
model: Any
model, tokenizer = uld.load(run)
form = PromptFormat(tokenizer)  # the tokenizer's chat template, as in training
prompts = [form.prompt_ids(question) for question in questions]

print("target:", generate_answers(model.target, tokenizer, prompts, max_new_tokens=40))
print("unlearned:", generate_answers(model, tokenizer, prompts, max_new_tokens=40))
for margin in (3.0, 1.0):
    model.combination = model.combination.override(margin=margin)
    print(f"margin = {margin}:", generate_answers(model, tokenizer, prompts, max_new_tokens=40))
