"""What the table becomes beside its figures: the picture, and names for what is absent."""

import json

import pytest

from muse_kernels.benchmarks import table, versions

FIGURES = {
    "versions": {"device": "a device"},
    "copy_bandwidth": 4e12,
    "resolvent": [
        {"name": "G forward", "seconds": 1e-4, "bytes": 300_000_000, "target": 0.65},
        {"name": "theta forward 64x4096", "seconds": 6e-6, "loop_seconds": 0.2},
    ],
}


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    roofline = pytest.importorskip("muse_kernels.benchmarks.roofline")
    assert roofline.points(FIGURES) == [("G forward", 300_000_000, 1e-4)]
    roofline.draw_roofline(FIGURES, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 5_000


def test_a_peer_that_is_not_installed_is_named_absent(monkeypatch):
    def missing(name):
        raise versions.PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", missing)
    assert versions.versions()["fla-core"] == "absent"


def test_figures_are_written(monkeypatch, tmp_path):
    monkeypatch.setattr(table.cpu, "measure", lambda: {"at 64x4096": []})
    assert table.run(json_file=tmp_path / "figures.json", plot=None, only="cpu") == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    assert written["cpu"] == {"at 64x4096": []} and "torch" in written["versions"]
