"""Which characters become tokens, and the conformance suites."""

from __future__ import annotations

from muse_core.testing import PluginSuite, TokenizerSuite, build_component


class TestConformance(TokenizerSuite):
    name = "new-plugin"


class TestDistribution(PluginSuite):
    distribution = "muse-new-plugin"


def test_the_most_common_characters_of_several_bytes_become_tokens() -> None:
    tokenizer = build_component("tokenizer", "new-plugin", characters=2).make(["aaa ööö ñ", "öñ 日"])
    assert tokenizer.characters == "öñ" and tokenizer.vocabulary_size == 259
    assert list(tokenizer.encode("aöñ日")) == [97, 257, 258, *"日".encode()]
