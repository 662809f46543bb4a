"""``muse report --serve``: on this machine alone, its own page alone, new when the run has gone on."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

from muse_core.cli import muse
from muse_core.metrics.jsonl import Records
from muse_core.report import serving
from muse_core.report.serving import Reports, server_of


@pytest.fixture
def served(made_run, monkeypatch):
    """``(server, run)``; the library's script is left out."""
    monkeypatch.setattr(serving, "script", lambda: "")
    run = made_run("one", finished=False)
    with server_of(Reports([run]), 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server, run
        server.shutdown()


def ask(server, path="/", method="GET", host=None):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_page_follows_the_run(served):
    server, run = served
    assert server.server_address[0] == "127.0.0.1"
    (status, before), (_, state) = ask(server), ask(server, "/state")
    assert status == 200 and "40 of 40" in before
    assert ask(server, "/state")[1] == state
    records = Records(run)
    records.metrics({"event": "train", "stage": 0, "step": 47, "loss": 1.0, "perplexity": 2.0})
    records.close()
    assert ask(server, "/state")[1] != state and "47 of 40" in ask(server)[1]


@pytest.mark.parametrize("path", ["/recipe.toml", "/../one/recipe.toml", "/report.html", "/?x"])
def test_only_its_own_page_is_served(served, path):
    assert ask(served[0], path)[0] == 404


def test_other_methods_and_other_hosts_are_refused(served):
    server, _ = served
    assert ask(server, method="POST")[0] == 501
    assert ask(server, method="HEAD") == (200, "")
    assert ask(server, host="example.org")[0] == 403
    assert ask(server, host=f"localhost:{server.server_address[1]}")[0] == 200


def test_a_run_that_becomes_unreadable_is_said_and_served_again_later(served):
    server, run = served
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").unlink()
    status, said = ask(server)
    assert status == 503 and "holds no run" in said
    (run / "recipe.toml").write_text(text)
    assert ask(server)[0] == 200


def test_a_port_in_use_is_one_sentence(made_run):
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        done = CliRunner().invoke(muse, ["report", str(made_run("one")), "--serve", "--port", str(port)])
    assert done.exit_code == 2
    assert done.output.strip() == f"--port {port}: is in use - choose another, or --port 0 for a free one"


def test_the_command_serves_until_it_is_asked_to_end(made_run):
    pytest.importorskip("vl_convert", reason="drawing needs vl-convert-python")
    code = "from muse_core.cli import muse; muse()"
    command = [sys.executable, "-c", code, "report", str(made_run("one")), "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline().split("/")[2].split(":")[1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/")
            assert "window.vegaEmbed" in connection.getresponse().read().decode()
        finally:
            process.terminate()
        assert process.wait(timeout=60) == 143
