"""The `data.split_seed` of a recipe whose test text is least of one kind.

    python recipes/experiments/choose_split.py recipes/phase5_10m.toml \
        --set 'data={ use = "mix", sources = ["state-of-the-union", { use = "python-library", packages = ["torch"] }] }'

Documents that share much text stay in one split, so that a family of them, such as the character tables of Python's
library, may make up half of a test text while training text has none of its kind. Printed for each seed: documents and
bytes of the test text, and the share of the bytes that the largest family has; last the seed where that is least.
"""

import argparse
import tempfile
from pathlib import Path

from muse_core.data import overlap
from muse_core.data.documents import divide, largest_group, spool
from muse_core.data.sources import cache_folder, open_source
from muse_core.recipe import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--seeds", type=int, default=50, help="seeds that are tried, from 1 on (default 50)")
    given = parser.parse_args()
    data = read_recipe(given.recipe, given.set).recipe.data
    with tempfile.TemporaryDirectory() as folder:
        documents = spool(open_source(data.source, cache_folder(data.cache)), Path(folder, "text"), lambda *_: None)
        sizes = [documents.num_bytes(index) for index in range(len(documents))]
        groups = overlap.group(documents.data, sizes)
        shares = {}
        for seed in range(1, given.seeds + 1):
            splits, _ = divide(documents, validation=data.validation, test=data.test, seed=seed, groups=groups)
            size = sum(sizes[index] for index in splits["test"])
            _, shares[seed] = largest_group(documents, splits["test"], groups)
            print(f"{seed}: {len(splits['test'])} documents, {size:,} bytes, largest family {shares[seed]:.3f}")
        print(f"least at data.split_seed={min(shares, key=shares.__getitem__)}")


if __name__ == "__main__":
    main()
