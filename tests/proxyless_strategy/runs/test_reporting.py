"""Reports to a manager that resets, refuses, freezes or is gone: a trial neither ends nor waits for long."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import nni
import pytest
from nni.runtime import trial_command_channel
from nni.runtime.trial_command_channel.v3 import TrialCommandChannelV3

from proxyless_strategy.runs import reporting
from proxyless_strategy.runs.reporting import Reports, ask_parameters


class Manager:
    """NNI's manager as far as a trial sees it.

    Attributes:
        plan: What happens to the next requests by method: None is an answer, "before" and "after" a reset before or
            after the request is understood, "frozen" no answer, a number another status.
    """

    def __init__(self) -> None:
        self.plan: dict[str, list[str | int | None]] = {"PUT": [], "GET": []}
        self.metrics: list[dict[str, Any]] = []
        self.asked = 0
        self.queue: list[dict[str, Any]] = []
        manager = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                manager.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_GET(self) -> None:
                manager.answer(self, None)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Say nothing about connections that are reset on purpose."""

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/env/local-env/abcde"

    def answer(self, handler: BaseHTTPRequestHandler, command: dict[str, Any] | None) -> None:
        rest = "/api/v1/nni/" in handler.path
        plan = self.plan[handler.command]
        fate = None if rest or not plan else plan.pop(0)
        if fate == "before":
            return reset(handler)
        if fate == "frozen":
            time.sleep(30)
        status, body = fate if isinstance(fate, int) else 200, b""
        if fate in (None, "after"):
            status, body = self.understand(handler, command)
        if fate == "after":
            return reset(handler)
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return None

    def understand(self, handler: BaseHTTPRequestHandler, command: dict[str, Any] | None) -> tuple[int, bytes]:
        if command is not None and command["type"] == "metric":
            self.metrics.append(json.loads(command["metric"]))
        elif command is not None:
            self.asked += 1
            if self.asked == 1:
                self.queue.append({"type": "parameter", "parameter": PARAMETERS})
        elif "/metric-data/" in handler.path:
            rows = [{"sequence": m["sequence"], "data": json.dumps(m["value"])} for m in self.metrics]
            return 200, json.dumps(rows).encode()
        elif "/trial-jobs/" in handler.path:
            return 200, json.dumps({"hyperParameters": [PARAMETERS]}).encode()
        else:
            return (200, json.dumps(self.queue.pop()).encode()) if self.queue else (408, b"")
        return 200, b""

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


PARAMETERS = json.dumps({"parameter_id": 7, "parameters": {"target": 0.3}})


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection so that its other end sees ECONNRESET."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.rfile.close()
    handler.wfile.close()
    handler.connection.close()
    handler.close_connection = True


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager()
    monkeypatch.setattr(trial_command_channel, "_channel", TrialCommandChannelV3(manager.url))
    monkeypatch.setattr("nni.trial._params", {"parameter_id": 0, "parameters": {}})
    monkeypatch.setattr("nni.trial._intermediate_seq", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield manager
    manager.close()


@pytest.mark.parametrize("fates", [["before", "before"], ["after"], ["after", "before", "after"], [500], [410, 503]])
@pytest.mark.parametrize("kind", ["intermediate", "final"])
def test_a_report_that_is_reset_or_refused_arrives_once(
    manager: Manager, capsys: pytest.CaptureFixture[str], fates: list[str | int | None], kind: str
) -> None:
    manager.plan["PUT"] = list(fates)
    reports = Reports()
    getattr(reports, kind)({"default": 0.5})
    getattr(reports, kind)({"default": 0.6})
    values = [json.loads(metric["value"])["default"] for metric in manager.metrics]
    assert values == [0.5, 0.6]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("gone", [True, False])
def test_intermediate_results_are_dropped_with_one_warning(
    manager: Manager, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    monkeypatch.setattr(reporting, "INTERMEDIATE_SECONDS", 0.5)
    if gone:
        manager.close()
    else:
        manager.plan["PUT"] = ["frozen"] * 3
    started = time.monotonic()
    reports = Reports()
    for epoch in range(3):
        reports.intermediate({"default": 0.1 * epoch})
    assert time.monotonic() - started < 8
    error = capsys.readouterr().err
    assert error.count("warning: NNI did not take an intermediate result") == 1
    assert len(error.splitlines()) == 1


def test_numbers_have_no_gap_after_a_report_that_was_dropped(
    manager: Manager, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "INTERMEDIATE_SECONDS", 0.0)
    manager.plan["PUT"] = [None, "before", None]
    reports = Reports()
    for epoch in range(3):
        reports.intermediate({"default": float(epoch)})
    assert [metric["sequence"] for metric in manager.metrics] == [0, 1]
    assert reports.final({"default": 0.9})
    assert "warning: 1 of 3 intermediate results did not reach NNI" in capsys.readouterr().err


def test_a_final_result_that_never_arrives_is_a_warning(
    manager: Manager, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "FINAL_SECONDS", 0.3)
    manager.close()
    assert not Reports().final({"default": 0.5})
    error = capsys.readouterr().err
    assert "NNI did not take the final result (ConnectionRefusedError: " in error
    assert "on disk" in error


def test_a_fault_in_nnis_client_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def broken(metrics: dict[str, Any]) -> None:
        tries.append(metrics)
        raise TypeError("no such argument")

    monkeypatch.setattr(nni, "report_final_result", broken)
    assert not Reports().final({"default": 0.5})
    assert len(tries) == 1
    assert "TypeError: no such argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("puts", "gets", "asked"),
    [
        ([], [], 1),
        (["before"], [], 1),
        (["after"], [], 1),
        ([500, "before"], ["before", 503], 1),
        # What was sent is lost with the connection, and NNI does not send it again.
        ([], ["after"], 1),
    ],
)
def test_parameters_survive_a_reset(
    manager: Manager, puts: list[str | int | None], gets: list[str | int | None], asked: int
) -> None:
    manager.plan = {"PUT": puts, "GET": gets}
    assert ask_parameters() == {"target": 0.3}
    assert manager.asked == asked


def test_a_manager_that_never_answers_ends_the_question(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "PARAMETER_SECONDS", 0.5)
    manager.close()
    with pytest.raises(OSError, match="refused"):
        ask_parameters()
