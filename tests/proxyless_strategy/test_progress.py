"""What a run tells while it runs: the time it has left, a line an epoch, and one bar in a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from proxyless_strategy.progress import Phase, TimeLeft, Told, duration, epoch_line

SEARCH = (
    Phase("warmup", 2, 1.0, after=8),
    Phase("search", 8, 2.0, before=2),
    Phase("retrain", 5, 4.0),
)


class Clock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


# ---- time left -----------------------------------------------------------------------------------------------------


def test_before_the_first_epoch_the_forecast_counts() -> None:
    assert TimeLeft(SEARCH, afterwards=7).seconds() == 2 * 1 + 8 * 2 + 5 * 4 + 7


def test_what_epochs_took_scales_what_is_predicted_of_the_phases_to_come() -> None:
    left = TimeLeft(SEARCH, afterwards=7)
    left.at("warmup", 0, now=0)
    left.at("warmup", 0.5, now=0.7)
    left.at("warmup", 1, now=3)  # three times what was predicted
    assert left.seconds() == pytest.approx(3 * (1 * 1 + 8 * 2 + 5 * 4) + 7)
    left.at("warmup", 2, now=6)
    left.at("search", 0, now=50)  # what lies between two phases is of neither
    left.at("search", 4, now=54)  # half of what was predicted: 10 s in all where 10 were
    assert left.seconds() == pytest.approx(4 * 1 + 5 * 4 * 10 / 10 + 7)


def test_a_start_in_the_middle_counts_its_own_time_alone() -> None:
    left = TimeLeft(SEARCH)
    left.at("search", 5.5, now=1000)
    left.at("search", 6, now=1003)
    assert left.seconds() == pytest.approx(2 * 6 + 5 * 4 * 3)


def test_without_a_forecast_the_time_is_unknown_until_every_phase_to_come_has_begun() -> None:
    left = TimeLeft([Phase("search", 4), Phase("retrain", 5)])
    left.at("search", 0, now=0)
    left.at("search", 4, now=8)
    assert left.seconds() is None
    left.at("retrain", 0, now=8)
    left.at("retrain", 1, now=9)
    assert left.seconds() == pytest.approx(4)


def test_the_share_goes_from_0_to_1_by_time_and_not_by_epochs() -> None:
    left = TimeLeft(SEARCH)
    assert left.share() == 0
    for place in range(3):
        left.at("warmup", place, now=place)
    assert left.share() == pytest.approx(2 / 38)
    left.at("search", 0, now=2)
    left.at("search", 8, now=18)
    assert left.share() == pytest.approx(18 / 38)
    left.at("retrain", 0, now=18)
    left.at("retrain", 5, now=38)
    assert left.share() == 1
    assert left.seconds() == 0


def test_a_phase_that_nobody_planned_changes_nothing() -> None:
    left = TimeLeft(SEARCH)
    left.at("dreaming", 3, now=5)
    assert left.seconds() == 38


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (3599, "1 h 0 min"),
        (23 * 3600 + 3599, "1 d 0 h"),
        (90_000, "1 d 1 h"),
    ],
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---- lines ---------------------------------------------------------------------------------------------------------


def test_a_line_leaves_out_what_is_not_known() -> None:
    assert epoch_line({"phase": "warmup", "epoch": 1, "loss": None, "default": 0.5}) == (
        "warmup 1: accuracy 50.0 % (likeliest subnet)"
    )


def test_a_line_names_the_unit_and_whose_accuracy_it_is() -> None:
    row = {"phase": "search", "epoch": 3, "loss": float("nan"), "expected": 5.25, "unit": "M MACs"}
    assert epoch_line(row, total=9, target=4.0) == "search 3/9: loss nan, E[cost] 5.25 -> 4 M MACs"
    assert "E[LAT] 5.25 ms" in epoch_line({**row, "unit": "ms"}, total=9)
    assert "100.0 % (training images)" in epoch_line({"phase": "retrain", "epoch": 1, "default": 1.0})


@pytest.fixture
def told() -> Iterator[tuple[Told, Clock]]:
    clock = Clock()
    with Told(SEARCH, target=3.0, clock=clock) as told:
        yield told, clock


def test_in_a_pipe_an_epoch_is_one_line(told: tuple[Told, Clock], capsys: pytest.CaptureFixture[str]) -> None:
    run, clock = told
    for batch in range(10):
        run.at("warmup", batch / 10)
        clock.now += 0.1
    run.epoch({"phase": "warmup", "epoch": 1, "loss": 2.0, "default": 0.1})
    output, error = capsys.readouterr()
    assert output == ""
    assert error == "warmup 1/10: loss 2.0000, accuracy 10.0 % (likeliest subnet), 37 s left\n"


@pytest.mark.parametrize(
    ("name", "place", "said"),
    [
        ("warmup", 0, ""),
        ("warmup", 1, "continuing at epoch 2 of 10\n"),
        ("warmup", 1.9, "continuing at epoch 2 of 10\n"),
        ("search", 0, "continuing at epoch 3 of 10\n"),
        ("search", 7.5, "continuing at epoch 10 of 10\n"),
        ("retrain", 0, ""),
        ("retrain", 2, "continuing the retraining at epoch 3 of 5\n"),
        ("retrain", 5, ""),
    ],
)
def test_a_run_that_continues_says_where(
    told: tuple[Told, Clock], capsys: pytest.CaptureFixture[str], name: str, place: float, said: str
) -> None:
    run, _ = told
    run.at(name, place)
    run.at(name, place)
    assert capsys.readouterr().err == said


def test_a_phase_that_follows_is_not_continued(told: tuple[Told, Clock], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = told
    for name, place in (("warmup", 0), ("warmup", 1), ("search", 0), ("search", 1), ("retrain", 0), ("retrain", 1)):
        run.at(name, place)
    assert capsys.readouterr().err == ""


def test_other_processes_tell_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Told(SEARCH, shown=False) as run:
        run.at("search", 2)
        run.epoch({"phase": "search", "epoch": 3, "loss": 1.0})
        run.say("hello")
        run.stage("export")
    assert capsys.readouterr() == ("", "")


def test_in_a_terminal_one_bar_stays_below_the_lines_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, output, clock = Screen(), io.StringIO(), Clock()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("sys.stdout", output)
    monkeypatch.setenv("TERM", "xterm")

    def interrupted() -> None:
        with Told(SEARCH, clock=clock) as run:
            run.at("warmup", 0)
            clock.now += 1
            run.at("warmup", 0.5)
            run.epoch({"phase": "warmup", "epoch": 1, "loss": 2.0})
            print("a row")
            run.stage("export")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    shown = screen.getvalue()
    assert shown.count("warmup 1/10: loss 2.0000") == 1
    assert "%" in shown
    assert shown.endswith("\x1b[2K")  # the bar's line is erased, and nothing comes after it
    assert output.getvalue() == "a row\n"
