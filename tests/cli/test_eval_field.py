"""``uld eval tofu`` beyond TOFU: attacks, samples, a judge and a classifier, all of it recomputable from logs."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

import uld.evaluation.benchmark as benchmark
import uld.evaluation.tofu_answers as answers
from uld.cli.main import app
from uld.data.prompt import Encoded, PromptFormat
from uld.data.record import Record
from uld.evaluation import membership
from uld.evaluation.memorization import exact_memorization, extraction_strength
from uld.evaluation.metrics import rouge_recall
from uld.evaluation.scoring import Scorer
from uld.evaluation.tofu_log import read_log
from uld.evaluation.token_scores import token_scores
from uld.model.load import load

QUICK = ("--max-new-tokens", "6", "--limit", "3", "-q")


def evaluate(*arguments: object):
    return CliRunner().invoke(app, ["eval", "tofu", *map(str, arguments)])


def result(*arguments: object) -> dict[str, Any]:
    done = evaluate(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A random classifier of texts with two labels, one of them ``Clean``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("classifier")
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "the": 2, "of": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=4, max_position_embeddings=32, id2label={0: "noise", 1: "Clean"}, **size)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def strangers(micro, tmp_path_factory) -> Path:
    """Questions that nobody was trained on, and two that everybody was."""
    file = tmp_path_factory.mktemp("strangers") / "strangers.jsonl"
    rows = [{"question": f"Who lives at number {i}?", "answer": f"Nobody lives at number {i}."} for i in range(12)]
    rows += [json.loads(line) for line in (micro.data / "full.json").read_text().splitlines()[:2]]
    file.write_text("".join(json.dumps({key: row[key] for key in ("question", "answer")}) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def everything(micro, strangers, classifier, tmp_path_factory) -> tuple[Path, tuple[object, ...], dict[str, Any]]:
    """A folder with all there is, the command that filled it, and what that said."""
    folder = tmp_path_factory.mktemp("everything")
    target = folder / "target"
    common = ("--data", micro.data, "--non-members", strangers, "--fluency-model", classifier, *QUICK)
    result("-m", micro.target, *common, "--output", target)
    command = (*common, "-m", shutil.copytree(micro.run, folder / "run"), "--output", folder / "eval")
    command += ("--retain-model", micro.retain_only, "--target-log", target, "--samples", 10)
    return folder, command, result(*command)


def test_all_of_it_follows_from_the_logs(everything):
    folder, _, found = everything
    (beside,) = (folder / "eval").glob("retain-*")
    logs = ("--from-log", folder / "eval", "--retain-log", beside, "--target-log", folder / "target")
    assert result(*logs) == found
    assert found["field"]["fluency_by"] == "classifier" and found["reading"]["samples"] == 10
    assert found["reading"]["leak"].keys() == {"1", "10"} and found["reading"]["perplexity"] > 1
    for scores in found["field"]["scores"].values():
        assert 0 <= scores["mem"] <= 1 and 0 <= scores["priv"] <= 1
    shown = evaluate(*logs).stdout
    for head in ("re-entry (%)", "degenerate (%)", "leak@10 (%)", "perplexity", "Mem", "Priv", "AUC zlib", "ES"):
        assert head in shown


def test_memorisation_and_attacks_are_what_one_row_alone_gives(micro, everything, strangers):
    folder, *_ = everything
    log = read_log(folder / "eval")
    model, tokenizer = load(micro.run)
    form, scorer = PromptFormat(tokenizer), Scorer.of(model, tokenizer)
    rows = [json.loads(line) for line in (micro.data / "forget10_perturbed.json").read_text().splitlines()[:3]]
    others = [json.loads(line) for line in strangers.read_text().splitlines()[:12]]
    others = [others[i * 12 // 8] for i in range(8)]  # as many as forget10 has, evenly spaced
    forget = log["forget"]
    for i, row in enumerate(rows):
        (one,) = token_scores(scorer, [form.encode(Record.qa(row["question"], row["answer"]), 10_000)])
        attacks = {
            "mia_loss": membership.loss(one.log_probs),
            "mia_zlib": membership.zlib_ratio(one.log_probs, row["answer"]),
            "mia_min_k": membership.min_k(one.log_probs),
            "mia_min_k_plus_plus": membership.min_k_plus_plus(one.log_probs, one.means, one.deviations),
        }
        assert {name: getattr(forget, name)[i] for name in attacks} == pytest.approx(attacks, rel=1e-3, abs=1e-4)
        assert forget.exact_memorization[i] == exact_memorization(one.right)
        assert forget.extraction_strength[i] == max(extraction_strength(one.right), 1 / len(one.right))
        assert forget.mia_loss[i] == pytest.approx(forget.avg_loss[i], rel=1e-5)
        said = forget.generated[i][1]
        assert forget.paraphrase_rougeL[i] == rouge_recall(said, row["paraphrased_answer"])[1]
    tokens = token_scores(scorer, [form.encode(Record.qa(row["question"], row["answer"]), 10_000) for row in others])
    losses = [membership.loss(one.log_probs) for one in tokens]
    assert log.non_members["mia_loss"] == pytest.approx(losses, rel=1e-4)


def test_the_judge_says_what_the_retain_only_model_thinks_of_the_answers(micro, everything):
    folder, *_ = everything
    forget = read_log(folder / "eval")["forget"]
    model, tokenizer = load(micro.retain_only)
    form = PromptFormat(tokenizer)
    rows = [json.loads(line) for line in (micro.data / "forget10_perturbed.json").read_text().splitlines()]
    written = [json.loads(line) for line in (folder / "eval" / "forget.jsonl").read_text().splitlines()]
    results = sorted(written, key=lambda one: one["row"])
    for row, result, (_, said, _), loss, tokens in zip(
        rows, results, forget.generated, forget.judged_loss, forget.judged_tokens, strict=False
    ):
        if not said:
            assert (loss, tokens) == (0, 0)
            continue
        prompt = form.prompt_ids(row["question"])
        written = result["ids"] + ([result["end"]] if result["end"] is not None else [])
        asked = Encoded(prompt + written, [False] * len(prompt) + [True] * len(written))
        (score,) = Scorer.of(model, tokenizer).score([asked])[0]
        assert (loss, tokens) == (pytest.approx(score.loss, rel=1e-4), score.tokens)


def test_a_second_time_computes_nothing_and_says_the_same(everything, monkeypatch):
    folder, command, found = everything
    before = {path: path.read_bytes() for path in (folder / "eval").rglob("*") if path.is_file()}
    monkeypatch.setattr(benchmark, "Scorer", None)
    monkeypatch.setattr(benchmark, "generate_ids", None)
    monkeypatch.setattr(answers, "generate_answers", None)
    monkeypatch.setattr(answers.Classifier, "__call__", None)
    assert result(*command) == found
    assert {path: path.read_bytes() for path in (folder / "eval").rglob("*") if path.is_file()} == before


def test_what_was_stopped_goes_on_to_the_same_numbers(everything, tmp_path):
    folder, command, found = everything
    again = Path(shutil.copytree(folder / "eval", tmp_path / "eval"))
    for name in ("samples-*.jsonl", "non_members-*.jsonl", "clean-*.jsonl", "judged-*.jsonl", "forget.jsonl"):
        (path,) = again.glob(name)
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    assert result(*command, "--output", again) == found
    for path in (folder / "eval").glob("*"):
        assert path.is_dir() or (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_samples_follow_their_seed_and_spread(everything, micro):
    folder, command, _ = everything
    samples = read_log(folder / "eval")["forget"].samples
    assert len({text for one in samples for text in one}) > 10
    result(*command, "--seed", 1)
    assert read_log(folder / "eval")["forget"].samples != samples
    result(*command)
    assert read_log(folder / "eval")["forget"].samples == samples


def test_a_base_model_judges_in_place_of_the_retain_only_model(everything, micro, tmp_path):
    folder, command, found = everything
    again = Path(shutil.copytree(folder / "eval", tmp_path / "eval"))
    other = result(*command, "--output", again, "--base-model", micro.target)
    assert other["reading"].pop("perplexity") != found["reading"]["perplexity"]
    assert other["reading"] == {name: one for name, one in found["reading"].items() if name != "perplexity"}
    assert other["field"] == found["field"]


def test_rows_of_an_older_version_are_done_again_and_its_logs_are_read(everything, tmp_path):
    folder, command, found = everything
    again = Path(shutil.copytree(folder / "eval", tmp_path / "eval"))
    further = {"extraction_strength", "exact_memorization", "paraphrase_rougeL"}
    rows = [json.loads(line) for line in (again / "forget.jsonl").read_text().splitlines()]
    old = [{key: row[key] for key in row if key not in further and not key.startswith("mia_")} for row in rows]
    (again / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    log = json.loads((again / "eval_log_aggregated.json").read_text())
    forget = log["eval_log_forget.json"]
    for name in (*further, "samples", "clean", "unknown_words", "judged_loss", "judged_tokens"):
        del forget[name]
    for name in [name for name in forget if name.startswith("mia_")]:
        del forget[name]
    del log["eval_log_non_members.json"]
    (tmp_path / "old.json").write_text(json.dumps(log))
    old_result = result("--from-log", tmp_path / "old.json")
    assert old_result["field"]["scores"]["prob_mean"]["mem"] is None and old_result["reading"]["leak"] == {}
    assert old_result["forget_prob"] == found["forget_prob"]
    assert result(*command, "--output", again) == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--from-log LOG --samples 5", "--from-log runs no model: leave out --samples, or evaluate with --model"),
        ("--from-log LOG --non-members ROWS", "leave out --non-members"),
        ("-m RUN --no-generate --samples 5 --fluency-model X", "--samples and --fluency-model need generated answers"),
        ("-m RUN --weight 0.5,1 --samples 5", "a grid of settings is scored without --samples: give one setting"),
        ("-m RUN --non-members TEXTS --data DATA", "texts.jsonl:1: --non-members takes questions with answers"),
        ("-m RUN --non-members FULL --data DATA", "all of them are rows of full, which the target learnt"),
        ("-m RUN --non-members MISSING --data DATA", "missing"),
        ("-m RUN --fluency-model MISSING --data DATA", "--fluency-model takes a folder or a Hub id"),
        ("-m RUN --fluency-model TARGET --data DATA", "is no text classifier: it lacks "),
        ("-m RUN --fluency-model CLASSIFIER --fluency-label ok --data DATA", "has no label 'ok' but noise, Clean"),
        ("-m RUN --base-model MISSING --data DATA", "--base-model takes a folder or a Hub id"),
        ("-m RUN --target-log MISSING --data DATA", "does not exist; name a TOFU log"),
        ("-m RUN --target-log OTHER --data DATA", "was made on forget05, not on forget10"),
        ("--from-log LOG --base-model RUN", "leave out --base-model"),
    ],
)
def test_bad_input_is_one_sentence(micro, classifier, tmp_path, arguments, message):
    places = {"RUN": micro.run, "DATA": micro.data, "TARGET": micro.target, "CLASSIFIER": classifier}
    places |= {"FULL": micro.data / "full.json", "MISSING": tmp_path / "missing", "LOG": tmp_path / "log"}
    (tmp_path / "texts.jsonl").write_text('{"text": "Only a text."}\n')
    log = {"avg_gt_loss": {"0": 1.0}, "avg_paraphrased_loss": {"0": 1.0}, "average_perturb_loss": {"0": [1.0]}}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "eval_log_aggregated.json").write_text(json.dumps({"eval_log_forget.json": log}))
    (tmp_path / "other" / "settings.json").write_text(json.dumps({"split": "forget05"}))
    places |= {"TEXTS": tmp_path / "texts.jsonl", "ROWS": tmp_path / "texts.jsonl", "OTHER": tmp_path / "other"}
    before = sorted(tmp_path.rglob("*"))
    words = [places.get(word, word) for word in arguments.split()]
    transformers.utils.logging.enable_progress_bar()  # another test may have taken it away
    done = evaluate(*words, *(("--output", tmp_path / "out") if "-m" in words else ()), "-q")
    assert done.exit_code == 2, done.output
    assert done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith("uld: ")
    assert re.search(re.escape(message), done.stderr), done.stderr
    assert sorted(tmp_path.rglob("*")) == before
