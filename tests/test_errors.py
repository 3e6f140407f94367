"""Messages: the nearest of the allowed names."""

import sys

import pytest

from jaxcifar.errors import UserError, choose, nearest, note


def test_choose():
    assert choose("colour", "red", ["red", "blue"]) == "red"
    with pytest.raises(UserError, match=r"colour is 'blu'. Did you mean 'blue'\? Allowed: red, b"):
        choose("colour", "blu", iter(["red", "blue"]))
    with pytest.raises(UserError, match=r"colour is 'xyz'. Allowed: red, blue\."):
        choose("colour", "xyz", ["red", "blue"])


def test_a_note_where_stderr_is_closed_is_not_on_stdout(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    note("resized")
    assert capsys.readouterr().out == ""


def test_no_text_controls_the_terminal(capsys):
    """A message may repeat what a file from elsewhere says."""
    note("failed: \x1b]0;title\x07\x1b[2J\r\x9b1A all is well\n\tmore ü")
    assert capsys.readouterr().err == "jaxcifar: failed: ?]0;title??[2J??1A all is well\n\tmore ü\n"


def test_nearest():
    assert nearest("resnet-18", ["resnet18", "resnet34"]) == " Did you mean 'resnet18'?"
    assert nearest("zzz", ["resnet18"]) == ""
