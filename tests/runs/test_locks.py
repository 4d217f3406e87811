"""Locks between processes; two opened files of one process stand for two processes here."""

import os
import threading

from uld.runs.locks import hold, is_held, locked


def test_one_holds_and_the_other_does_not(tmp_path):
    path = tmp_path / ".lock"
    with locked(path) as mine:
        assert mine and is_held(path)
        with locked(path) as other:
            assert not other
        assert is_held(path)  # who did not get it takes nothing away
    assert not path.exists() and not is_held(path)


def test_a_lock_on_a_removed_file_does_not_count(tmp_path):
    path = tmp_path / ".lock"
    with locked(path):
        waiting = os.open(path, os.O_RDWR)
    assert not hold(waiting, path)
    with locked(path) as mine:
        assert mine and not hold(waiting, path)
    os.close(waiting)


def test_what_a_kill_left_can_be_locked_again(tmp_path):
    path = tmp_path / ".lock"
    path.touch()
    assert not is_held(path)
    with locked(path) as mine:
        assert mine
    assert not path.exists()


def test_waiting_ends_when_the_other_is_done(tmp_path):
    path, order = tmp_path / ".lock", []

    def second():
        with locked(path, wait=20) as mine:
            order.append(("second", mine))

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", ("second", True)] and not path.exists()


def test_a_folder_can_be_held(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    assert hold(handle, tmp_path) and is_held(tmp_path)
    os.close(handle)
    assert not is_held(tmp_path)
