from __future__ import annotations

import pytest

import study


def test_every_study_is_listed_with_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main([]) == 0
    listed = capsys.readouterr().out
    assert len(study.names()) == 10
    for name in study.names():
        assert f"{name}: {study.finding(name)}\n" in listed
    assert study.main(["nothing"]) == 2
    assert "error: study: must be one of those above" in capsys.readouterr().err


@pytest.mark.parametrize("name", study.names())
def test_every_study_has_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        study.main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: study.py {name} ")
