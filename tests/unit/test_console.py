"""What a command shows while it works."""

import logging

import pytest

from tryon import console
from tryon.console import progress_bar


@pytest.fixture
def every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)


def test_long_work_leaves_lines_in_a_log(
    every_update: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRAIN_TERMINAL", raising=False)
    caplog.set_level(logging.INFO)
    bar = progress_bar(4, "encoding", visible=True, initial=1)
    bar.update(2)
    bar.close()
    assert [message.partition(",")[0] for message in caplog.messages] == ["encoding: 1 of 4", "encoding: 3 of 4"]


def test_a_bar_that_is_not_to_be_seen_says_nothing(
    every_update: None, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    bar = progress_bar(4, "encoding", visible=False)
    bar.update(2)
    bar.close()
    assert caplog.messages == [] and capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar(
    every_update: None,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRAIN_TERMINAL", "1")
    caplog.set_level(logging.INFO)
    progress_bar(4, "encoding", visible=True).close()
    assert caplog.messages == [] and "encoding:   0%" in capsys.readouterr().err


def test_one_of_several_processes_says_what_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, said in (("0", "loading json, math and transformers ...\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        console.load_libraries("json", "math", "transformers")
        assert capsys.readouterr() == ("", said)
