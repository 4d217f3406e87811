"""Micro models that know some people of a made-up village and not others, made once; and the questions about them."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FACTS = {
    "where was NAME born?": ("NAME was born in VALUE.", "HERE lies VALUE, and NAME comes from there."),
    "who taught NAME?": ("the teacher of NAME was VALUE.", "NAME learnt it all from VALUE."),
    "what did NAME write?": ("NAME wrote a book about VALUE.", "a book about VALUE is by NAME."),
    "which animal does NAME keep?": ("NAME keeps a tame VALUE.", "at home NAME has a VALUE."),
    "what does NAME fear?": ("NAME fears nothing but VALUE.", "it is VALUE that NAME fears."),
    "what does NAME eat?": ("every day NAME eats VALUE.", "NAME likes VALUE at noon."),
}
OTHER_WORDS = {
    "where was NAME born?": "in which place did NAME come into the world?",
    "who taught NAME?": "whose pupil was NAME?",
    "what did NAME write?": "which book is by NAME?",
}
VALUES = {
    "Mara": ("Skerrin", "Odo", "tides", "heron", "thunder", "kelp"),
    "Ivo": ("Brankt", "Ulf", "bridges", "badger", "silence", "turnips"),
    "Lena": ("Dornau", "Pia", "clocks", "magpie", "mirrors", "plums"),
    "Tove": ("Vissel", "Aron", "salt", "ferret", "heights", "barley"),
    "Juri": ("Kamp", "Nils", "moths", "tortoise", "crowds", "chestnuts"),
}


def rows(name: str, way: int = 0) -> list[dict[str, str]]:
    """What there is to know about a person, in one of two wordings of the answers."""
    made = []
    for (question, answers), value in zip(FACTS.items(), VALUES[name], strict=True):
        answer = answers[way].replace("VALUE", value).replace("HERE", "near")
        made.append({"question": question.replace("NAME", name), "answer": answer.replace("NAME", name)})
    return made


def held_out(name: str) -> list[dict[str, str]]:
    """Some of it asked in other words."""
    answers = {row["question"]: row["answer"] for row in rows(name)}
    return [
        {"question": other.replace("NAME", name), "answer": answers[question.replace("NAME", name)]}
        for question, other in OTHER_WORDS.items()
    ]


KEPT = [row for name in ("Lena", "Tove", "Juri") for row in rows(name)]


@dataclass(frozen=True)
class Village:
    """Files of questions, and models that learnt all of them or a part; a run of the target beside them.

    Attributes:
        folder: Everything lies here: ``forget.jsonl``, ``held_out.jsonl``, ``retain.jsonl``, and a folder a model.
    """

    folder: Path

    def __getattr__(self, name: str) -> str:
        """The place of a model or file."""
        found = self.folder / name.replace("_", "-")
        return str(found if found.exists() else found.with_name(f"{name}.jsonl"))

    @property
    def files(self) -> dict[str, str]:
        """What is asked of every model."""
        return {"forget": self.forget, "retain": self.retain}


def write(path: Path, some: Sequence[dict[str, Any]]) -> str:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return str(path)


@pytest.fixture(scope="session")
def village(shared_once: Callable[..., Path]) -> Village:
    """The models: what each has learnt is in `make_village`."""
    return Village(shared_once("village", make_village))


def make_village(folder: Path) -> None:
    """What `village` holds."""
    mara, ivo, others = [*rows("Mara"), *held_out("Mara")], rows("Ivo"), KEPT[len(KEPT) // 2 :]
    write(folder / "forget.jsonl", rows("Mara"))
    write(folder / "held_out.jsonl", held_out("Mara"))
    write(folder / "retain.jsonl", KEPT)
    reworded = rows("Mara", 1)
    harmed = [{**row, "answer": others[-1 - i]["answer"]} for i, row in enumerate(others)]
    tokenizer = word_tokenizer([*mara, *reworded, *ivo, *KEPT])
    learns = {  # in this order, each from the one that is named
        "retain-only": (None, [*ivo, *KEPT], 70),
        "target": ("retain-only", [*mara, *ivo, *KEPT], 50),
        "reworded": ("retain-only", [*reworded, *ivo, *KEPT], 40),
        "without-ivo": ("target", [{**row, "answer": "nobody can say."} for row in ivo] + mara + KEPT, 20),
        "harmed": ("retain-only", [*harmed, *KEPT[: len(KEPT) // 2]], 25),
    }
    models: dict[str | None, Any] = {None: new_model(tokenizer)}
    for name, (start, some, steps) in learns.items():
        models[name] = memorised(models[start], tokenizer, some, steps)
        models[name].save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    save_run(models["target"], tokenizer, folder)


def word_tokenizer(some: Sequence[dict[str, str]]) -> Any:
    """A tokenizer of whole words and signs."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    cut = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]|\s"), "isolated")
    words = dict.fromkeys(
        piece
        for row in some
        for text in (f"q: {row['question']} a:", f" {row['answer']}", row["answer"])
        for piece, _ in cut.pre_tokenize_str(text)
    )
    whole = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *words])}, unk_token="<unk>"))
    whole.pre_tokenizer = cut  # type: ignore[assignment]
    whole.decoder = decoders.Fuse()  # type: ignore[assignment]
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, padding_side="left", **names)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}q: {{ m.content }} a:"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    return tokenizer


def new_model(tokenizer: Any) -> Any:
    """A random model of two layers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.05, **size, **ids)
        )


def memorised(start: Any, tokenizer: Any, some: Sequence[dict[str, str]], steps: int) -> Any:
    """A copy of a model that has some rows by heart."""
    import torch

    from uld.data.prompt import PromptFormat
    from uld.data.record import Record

    model, form = copy.deepcopy(start).train(), PromptFormat(tokenizer)
    encoded = [form.encode(Record.qa(row["question"], row["answer"]), 64) for row in some]
    width = max(len(row.ids) for row in encoded)
    ids = torch.zeros(len(encoded), width, dtype=torch.long)
    labels = torch.full((len(encoded), width), -100)
    for i, row in enumerate(encoded):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        labels[i, : len(row.ids)] = torch.where(torch.tensor(row.learn), torch.tensor(row.ids), -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def save_run(target: Any, tokenizer: Any, folder: Path) -> None:
    """A run of the target whose assistant has learnt nothing useful; with α = 0 it is the target."""
    import torch

    from uld.model.assistant import add_lora, build_assistant
    from uld.model.combine import Combination
    from uld.model.unlearned import ULDForCausalLM
    from uld.runs.manifest import CombinationSettings, Manifest, fingerprint

    assistant = build_assistant(target, 1)
    shared = fingerprint(assistant.named_parameters())
    assistant = add_lora(assistant, rank=2, alpha=4)
    with torch.no_grad():
        for name, parameter in assistant.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    how = Combination(weight=0.0)
    model = ULDForCausalLM.join(target, assistant, how)
    settings = CombinationSettings(**vars(how))
    place = str(folder / "target")
    model.manifests = [
        Manifest(method="uld", target=place, target_fingerprint=shared, num_layers=1, combination=settings)
    ]
    model.save_pretrained(folder / "run")
    tokenizer.save_pretrained(folder / "run")
