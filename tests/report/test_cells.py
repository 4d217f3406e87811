import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from uld.report.cells import ANSWERS, CELLS, Answers, Cell, CellError, Identity, Timing, read_cells, read_folder


def test_a_cell_comes_back_as_it_was_written(tmp_path: Path, make_cell: Callable[..., Cell]):
    epochs = [{"epoch": 0, "forget_loss": 0.1}, {"epoch": 1, "forget_quality": 1e-7}]
    cell = make_cell(
        "npo+kl", fq=4.3e-25, epochs=epochs, training={"steps": 3, "forget_rows": 7}, settings={"x": [1, None]}
    )
    cell.write(tmp_path / "a" / "b.json")
    again = Cell.read(tmp_path / "a" / "b.json")
    assert again == cell
    assert again.result is not None and again.result.forget_quality == 4.3e-25
    assert again.training is not None and again.training.model_dump()["forget_rows"] == 7


def test_what_is_infinite_stays_so_in_json_that_any_parser_reads(tmp_path: Path, make_cell: Callable[..., Cell]):
    losses = [{"epoch": 1, "forget_loss": math.inf, "held_out_loss": 2.0}]
    settings = {"weight": math.inf, "floor": 5e-4, "tried": [1, {"margin": math.inf}], "template": None}
    cell = make_cell("uld", epochs=losses, settings=settings, training={"seconds": 2.5, "last": math.inf})
    cell.write(tmp_path / "x.json")
    assert Cell.read(tmp_path / "x.json") == cell

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is no JSON")

    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)["settings"]["weight"] == math.inf


def test_the_format_that_a_comparison_writes_is_read(tmp_path: Path, make_cell: Callable[..., Cell]):
    result = json.loads(make_cell("npo").model_dump_json())["result"]
    which = {"name": "npo-forget10-seed0", "role": "method", "method": "npo", "label": None, "variant": ""}
    where = {"group": ["table2", "table9"], "split": "forget10", "seed": 0, "format": 1, "digest": "ab"}
    found = {"settings": {"epochs": 3}, "training": None, "result": result, "epochs": [], "error": None}
    data = which | where | found | {"versions": {"torch": "2"}, "machine": {"cores": 2}}
    (tmp_path / "x.json").write_text(json.dumps(data))
    assert Cell.read(tmp_path / "x.json").model_dump(mode="json") == data | {"further": None}  # of earlier versions


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Invalid JSON"),
        ("[]", "object"),
        ('{"name": "x", "method": "npo"}', "at split"),
        ('{"name": "x", "split": "forget10", "method": "npo", "seed": "many"}', "at seed"),
        ('{"name": "x", "split": "forget10", "method": "npo", "colour": "red"}', "at colour"),
        ('{"name": "x", "split": "forget10", "method": "npo", "group": ["table3"]}', "at group.0"),
        ('{"name": "x", "split": "forget10", "role": "target", "method": "npo"}', "exactly if its role"),
        ('{"name": "../x", "split": "forget10", "method": "npo"}', "at name"),
        ('{"format": 2}', "newer version"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_damaged_cell_is_one_sentence_with_its_place(tmp_path: Path, text: str | bytes, words: str):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CellError) as caught:
        Cell.read(path)
    assert str(path) in str(caught.value) and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cell_without_result_says_why(make_cell: Callable[..., Cell]):
    assert make_cell("npo").failure is None
    assert make_cell("npo", result=None, error="no memory").failure == "no memory"
    assert "neither" in str(make_cell("npo", result=None).failure)


def test_a_folder_is_read_with_all_that_is_in_it(comparison: Path):
    folder = read_folder(comparison)
    assert [cell.name for cell in folder.cells] == sorted(cell.name for cell in folder.cells)
    assert [one.name for one in folder.missing] == ["rmu-forget10-seed0"]
    assert set(folder.answers) == {"target-forget10-seed0", "uld-forget10-seed0"}
    assert folder.timing is not None and folder.timing.seconds_per_epoch["uld"] == 2.0


def test_answers_timing_and_plan_may_be_absent(write_folder: Callable[..., Path], make_cell: Callable[..., Cell]):
    folder = read_folder(write_folder([make_cell("npo")]))
    assert (len(folder.cells), folder.missing, folder.answers, folder.timing) == (1, [], {}, None)


def test_an_absent_and_an_empty_folder_are_refused(tmp_path: Path):
    with pytest.raises(CellError, match="no folder"):
        read_cells(tmp_path / "absent")
    with pytest.raises(CellError, match="has no cells"):
        read_cells(tmp_path)


def test_a_file_half_written_beside_the_cells_is_not_a_cell(comparison: Path):
    before = read_cells(comparison)
    (comparison / CELLS / ".npo.json.k3x9.json").write_text("{")
    assert read_cells(comparison) == before


def test_two_comparisons_in_one_folder_are_noticed(write_folder: Callable[..., Path], make_cell: Callable[..., Cell]):
    folder = write_folder([make_cell("npo"), make_cell("npo", name="another")])
    with pytest.raises(CellError, match=r"another\.json and .* two comparisons"):
        read_cells(folder)


def test_a_renamed_cell_is_noticed(write_folder: Callable[..., Path], make_cell: Callable[..., Cell]):
    folder = write_folder([make_cell("npo")])
    (folder / CELLS / "npo-forget10-seed0.json").rename(folder / CELLS / "dpo.json")
    with pytest.raises(CellError, match="own name back"):
        read_cells(folder)


@pytest.mark.parametrize("seconds", [0, -1.0])
def test_no_method_takes_no_time(seconds: float):
    with pytest.raises(ValidationError):
        Timing(seconds_per_epoch={"uld": seconds})


def test_damaged_answers_are_one_sentence(comparison: Path):
    path = comparison / ANSWERS / "uld-forget10-seed0.json"
    path.write_text('{"forget": [{"question": "q"}]}')
    with pytest.raises(CellError, match=r"forget\.0\.truth"):
        Answers.read(path)


def test_names_are_those_of_files():
    with pytest.raises(ValidationError):
        Identity(name="a/b", method="npo", split="forget10")
