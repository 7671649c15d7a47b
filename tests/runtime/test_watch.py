"""Lines that tell how long a call will take."""

from __future__ import annotations

import threading
import time

import pytest

from sketchlayers._runtime.progress import progress_bar
from sketchlayers._runtime.watch import Watch, duration, watching


def is_ticking() -> bool:
    return any(thread.name == "sketchlayers-watch" for thread in threading.enumerate())


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_line_a_stage_and_one_every_half_minute(clock: Clock) -> None:
    lines: list[str] = []
    watch = Watch("compress", lines=True, clock=clock, write=lines.append)
    watch.expect({"calibration": 20.0, "ranks": 60.0, "fit": 100.0})
    watch.enter("calibration")
    clock.now = 4.0
    watch.tick()
    assert lines == []  # a call of a few seconds prints nothing
    clock.now = 5.0
    watch.tick()
    assert lines == ["compress: calibration, 5 s so far, about 3 min left"]
    clock.now = 20.0
    watch.enter("ranks")
    assert lines[1:] == ["compress: ranks, 20 s so far, about 2 min 40 s left"]
    clock.now = 49.0
    watch.advance(0.5)
    watch.tick()
    assert len(lines) == 2
    clock.now = 50.0
    watch.tick()
    assert lines[2:] == ["compress: ranks (50 %), 50 s so far, about 2 min 10 s left"]


def test_short_calls_and_calls_that_want_none_print_nothing(clock: Clock) -> None:
    lines: list[str] = []
    watch = Watch("compress", lines=False, clock=clock, write=lines.append)
    watch.enter("fit")
    clock.now = 100.0
    watch.tick()
    assert not lines and watch.left() is None


def test_what_is_left_follows_the_pace(clock: Clock) -> None:
    watch = Watch("compress", lines=False, clock=clock)
    watch.expect({"ranks": 10.0, "fit": 50.0})
    watch.enter("ranks")
    clock.now = 20.0  # twice as long as expected
    watch.enter("fit")
    assert watch.left() == pytest.approx(100.0)
    clock.now = 45.0
    watch.advance(0.5)
    assert watch.left() == pytest.approx(50.0)  # half of 25 s more by its pace, half by the past's


def test_later_stages_follow_the_present_one(clock: Clock) -> None:
    watch = Watch("compress", lines=False, clock=clock)
    watch.expect({"calibration": 100.0, "fit": 60.0})
    watch.enter("calibration")
    assert watch.left() == pytest.approx(160.0)
    clock.now = 20.0
    watch.advance(0.8)  # four times as fast as expected: 25 s in all
    assert watch.left() == pytest.approx(0.8 * (25 + 15) + 0.2 * (100 + 60) - 20)


def test_bars_tell_how_far_a_stage_is() -> None:
    with watching("compress", lines=False) as watch:
        watch.expect({"fit": 10.0})
        watch.enter("fit")
        with progress_bar("fitting", 4, show=False) as advance:
            advance(3)
        assert watch.left() is not None and watch.left() <= 10.0
        assert watch._share == 0.75


def test_lines_come_while_the_body_computes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sketchlayers._runtime.watch._PATIENCE", 0.01)
    with watching("compress", lines=True) as watch:
        watch.enter("fit")
        begin, err = time.monotonic(), ""
        while not err and time.monotonic() - begin < 30:
            time.sleep(0.05)
            err = capsys.readouterr().err
    assert err.startswith("compress: fit, ")
    begin = time.monotonic()
    while is_ticking() and time.monotonic() - begin < 30:
        time.sleep(0.05)
    assert not is_ticking()


@pytest.mark.parametrize(
    ("seconds", "exact", "rounded"),
    [
        (0.2, "1 s", "5 s"),
        (47, "47 s", "45 s"),
        (59, "59 s", "1 min"),
        (131, "2 min 11 s", "2 min 10 s"),
        (700, "11 min 40 s", "12 min"),
        (3900, "1 h 5 min", "1 h 5 min"),
    ],
)
def test_durations(seconds: float, exact: str, rounded: str) -> None:
    assert duration(seconds) == exact
    assert duration(seconds, about=True) == rounded
