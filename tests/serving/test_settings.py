"""What a server is started with: keys, a port, a name."""

import socket

import pytest

from uld.errors import ULDError
from uld.serving.settings import KEY_VARIABLE, bind, read_keys, served_name


@pytest.fixture(autouse=True)
def no_key_around(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def key_file(folder, text, mode=0o600):
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_keys_are_the_lines_of_a_file_or_the_environments(tmp_path, monkeypatch):
    assert read_keys(key_file(tmp_path, "# of the team\none\n\n  two \n")) == ("one", "two")
    assert read_keys(key_file(tmp_path, "\ufeffone\r\ntwo\r\n")) == ("one", "two")  # saved on Windows
    assert read_keys(None) == ()
    monkeypatch.setenv(KEY_VARIABLE, "three")
    assert read_keys(None) == ("three",)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_keys_that_others_can_read_are_refused(tmp_path, mode):
    with pytest.raises(ULDError, match=r"can be read by others: keep its keys to yourself with chmod 600 .*keys"):
        read_keys(key_file(tmp_path, "one\n", mode))


@pytest.mark.parametrize(
    ("text", "match"),
    [("\n# none\n", "holds no key"), ("a key\n", "no header can carry"), ("schlüssel\n", "no header can carry")],
)
def test_a_file_without_usable_keys_is_refused(tmp_path, text, match):
    with pytest.raises(ULDError, match=match):
        read_keys(key_file(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ULDError, match=r"--api-keys .*none cannot be read: No such file"):
        read_keys(str(tmp_path / "none"))


def test_a_port_that_is_taken_is_refused():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ULDError, match=rf"cannot listen on 127.0.0.1:{port}: Address already in use; choose"):
            bind("127.0.0.1", port)
    with bind("127.0.0.1", port) as again:
        assert isinstance(again, socket.socket)


def test_a_host_that_is_none_is_refused():
    with pytest.raises(ULDError, match=r"cannot listen on no\.such\.host\.invalid:0: there is no host"):
        bind("no.such.host.invalid", 0)


def test_a_model_is_named_after_its_run(tmp_path):
    assert served_name([str(tmp_path / "runs" / "x"), "y/"], None) == "x+y"
    assert served_name(["x"], "mine") == "mine"
