"""The sources keep the contract of sources."""

from muse_core.testing import SourceSuite


class TestStateOfTheUnion(SourceSuite):
    name = "state-of-the-union"


class TestPythonLibrary(SourceSuite):
    name = "python-library"


class TestFiles(SourceSuite):
    name = "files"


class TestHub(SourceSuite):
    name = "hub"


class TestMix(SourceSuite):
    name = "mix"
