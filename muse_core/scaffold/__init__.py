"""Templates of plugin distributions, one folder per kind, and writing one of them under a name.

The templates are plugins that work, of the name ``new-plugin``; ``common`` holds what all kinds share.
"""

from __future__ import annotations

import ast
import keyword
import re
from importlib import metadata
from pathlib import Path

from muse_core.errors import RecipeError, StorageError
from muse_core.plugins.bundled import PROVIDES
from muse_core.storage.new_directory import filled

TEMPLATES = Path(__file__).parent
NAME = r"[a-z][a-z0-9]*(-[a-z0-9]+)*"


def write_plugin(name: str, kind: str, parent: Path) -> Path:
    """Write the distribution ``muse-<name>`` with one component of this kind into ``parent``; returns its folder.

    Raises RecipeError for a name that cannot be one, and StorageError when the folder exists or cannot be written.
    """
    if not re.fullmatch(NAME, name):
        raise RecipeError(
            f"NAME: {name!r} is not made of small letters and digits joined by dashes, starting with a letter"
        )
    if name.startswith("muse-"):
        raise RecipeError(f"NAME: leave out 'muse-': the distribution of {name[5:]!r} is named {name}")
    if is_taken(f"muse-{name}"):
        raise RecipeError(f"NAME: the distribution muse-{name}, which this one would replace, is of this project or "
                          "installed here - choose another name")
    folder = parent / f"muse-{name}"
    if folder.exists():
        raise StorageError(f"{folder} exists already - choose another name, or another folder with --into")
    with filled(folder, "write the plugin") as partial:
        for path, text in rendered(name, kind).items():
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    return folder


def is_taken(distribution: str) -> bool:
    """Whether a distribution of this project, or one that is installed, has this name."""
    if distribution in PROVIDES:
        return True
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def rendered(name: str, kind: str) -> dict[str, str]:
    """Path inside the distribution → text, under this name."""
    words = {
        "new-plugin": name,
        "new_plugin": "muse_" + name.replace("-", "_"),
        "NewPlugin": class_name(name, kind),
        "NEW_KIND": kind,
    }
    pattern = re.compile("|".join(words))

    def named(text: str) -> str:
        return pattern.sub(lambda match: words[match[0]], text)

    found = {}
    for layer in (TEMPLATES / "common", _folder(kind)):
        for path in sorted(layer.rglob("*")):
            place = path.relative_to(layer)
            # What tools leave in folders of sources, such as __pycache__ and .ruff_cache, is no template.
            if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in place.parts):
                found[named(place.as_posix())] = named(path.read_text(encoding="utf-8"))
    return found


def class_name(name: str, kind: str) -> str:
    """The class of the component: its name, and its kind behind it where the template has the name alone for something
    else, as ``Tensor``, or Python has."""
    own, behind = ("".join(part.capitalize() for part in re.split("[- ]", words)) for words in (name, kind))
    taken: set[str] = set()
    for path in _folder(kind).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name):
                taken.add(node.id)
            elif isinstance(node, ast.ClassDef):
                taken.add(node.name)
            elif isinstance(node, ast.alias):
                taken.add(node.asname or node.name)
    return own + behind if keyword.iskeyword(own) or own in taken else own


def _folder(kind: str) -> Path:
    """Templates of a kind."""
    return TEMPLATES / kind.replace(" ", "_")
