"""What transformers offers to every model and an unlearned one must not do is refused, and nothing is half done."""

import pytest
import torch

from uld.errors import ULDError


@pytest.fixture(scope="module")
def model(make_target, make_unlearned):
    return make_unlearned(make_target("llama"), 2)


@pytest.fixture
def offline(monkeypatch):
    """Whoever asks the Hub for anything is seen."""
    import huggingface_hub

    asked = []
    for name in ("create_repo", "upload_folder", "upload_file", "create_commit"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda *a, _name=name, **k: asked.append(_name))
    return asked


def test_a_run_is_published_by_the_command_alone_which_leaves_names_of_files_out(make_run, tmp_path, offline):
    import uld

    run, _ = uld.load(make_run(tmp_path))
    for publish in (
        lambda: run.push_to_hub("org/name"),
        lambda: run.push_to_hub("org/name", private=True, token="x"),
        lambda: run.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id="org/name"),
    ):
        with pytest.raises(ULDError, match=r"only by uld push FOLDER ORG/NAME: save the model into a folder"):
            publish()
    assert offline == [] and not (tmp_path / "again").exists()
    run.save_pretrained(tmp_path / "again", push_to_hub=False)
    assert (tmp_path / "again" / "uld.json").is_file()


@torch.no_grad()
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "separate"])
@pytest.mark.parametrize("size", [(35,), (20,), (None, 16), (33, 34, False)], ids=str)
def test_embeddings_are_not_resized_for_the_target_alone(model, fused, size):
    model.fused = fused
    ids = torch.tensor([[9, 4, 31, 17]])
    before = model(ids).logits
    if size == (33, 34, False):  # which comes to as many as there are
        assert model.resize_token_embeddings(*size) is model.get_input_embeddings()
    else:
        with pytest.raises(ULDError, match=r"cannot be resized \(34 tokens to \d+\).*tokenizer\.pad_token = tokenizer"):
            model.resize_token_embeddings(*size)
    assert model.resize_token_embeddings() is model.target.get_input_embeddings()
    assert torch.equal(model(ids).logits, before) and model.config.vocab_size == 34


@pytest.mark.parametrize("name", ["add_adapter", "load_adapter"])
def test_another_adapter_is_another_run(model, name):
    names = [one for one, _ in model.named_modules()]
    with pytest.raises(ULDError, match=r"several runs of one target are loaded together with uld\.load"):
        getattr(model, name)("runs/y")
    assert [one for one, _ in model.named_modules()] == names
