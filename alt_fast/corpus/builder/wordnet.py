"""WordNet 3.0 through NLTK, from wherever it is installed, and what ALT needs to know of a sense."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import nltk
from nltk.corpus.reader.wordnet import WordNetCorpusReader

from alt_fast.corpus import CorpusError
from alt_fast.files import cache_folder

Synset = Any  # NLTK has no types

SYSTEM_FOLDERS = (
    "/usr/share/wordnet",
    "/usr/share/wordnet-3.0/dict",
    "/usr/local/WordNet-3.0/dict",
    "/usr/share/wordnet/dict",
)
# Names of WordNet's lexicographer files in the order of their numbers (lexnames(5WN)).
LEXNAMES = (
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute"),
    *("noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group"),
    *("noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant", "noun.possession"),
    *("noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state", "noun.substance", "noun.time"),
    *("verb.body", "verb.change", "verb.cognition", "verb.communication", "verb.competition", "verb.consumption"),
    *("verb.contact", "verb.creation", "verb.emotion", "verb.motion", "verb.perception", "verb.possession"),
    *("verb.social", "verb.stative", "verb.weather", "adj.ppl"),
)
_PARTS_OF_SPEECH = {"noun": 1, "verb": 2, "adj": 3, "adv": 4}
FILES = (
    *("cntlist.rev", "index.sense"),
    *(name for part in _PARTS_OF_SPEECH for name in (f"data.{part}", f"index.{part}", f"{part}.exc")),
)
"""What NLTK reads of a WordNet, beside the names of lexicographer files."""
LEXNAMES_FILE = "lexnames"

HOW_TO_GET_IT = (
    "WordNet was not found. Any one of these gives it: apt-get install wordnet-base wordnet-sense-index; "
    "python -m nltk.downloader wordnet; or a copy of WordNet 3.0's dict folder, named by the variable WNSEARCHDIR"
)


def open_wordnet() -> WordNetCorpusReader:
    """WordNet from NLTK's data path, the system's files, or fetched.

    Raises CorpusError saying how to get it, or that no copy of it can be stored.
    """
    try:
        found = _in_nltk_path() or _from_system() or _downloaded()
    except OSError as e:
        raise CorpusError(f"cannot store WordNet: {e}; the variable XDG_CACHE_HOME names another place for it") from e
    if found is None:
        passed_over = [f"; {folder} lacks {', '.join(lacking)}" for folder, lacking in _system_folders() if lacking]
        raise CorpusError(HOW_TO_GET_IT + "".join(passed_over))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that other languages are missing
        return WordNetCorpusReader(found, None)


def _in_nltk_path() -> Any:
    """What NLTK itself would take, unless it is incomplete."""
    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            found = nltk.data.find(name)
        except LookupError:
            continue
        except BadZipFile:
            return None
        with suppress(OSError):
            for file in (*FILES, LEXNAMES_FILE):
                found.join(file)
            return found
        return None
    return None


def _from_system() -> Any:
    for folder, lacking in _system_folders():
        if not lacking:
            root = cache_folder("nltk_data")
            _copy(folder, root / "corpora" / "wordnet")
            nltk.data.path.insert(0, str(root))  # before an incomplete one, which the reader would take
            return _in_nltk_path()
    return None


def _system_folders() -> list[tuple[Path, list[str]]]:
    """The folders that hold WordNet, with the files that each lacks."""
    folders = map(Path, filter(None, [os.environ.get("WNSEARCHDIR", ""), *SYSTEM_FOLDERS]))
    return [(folder, _lacking(folder, FILES)) for folder in folders if (folder / "data.noun").is_file()]


def _lacking(folder: Path, files: Sequence[str]) -> list[str]:
    return [name for name in files if not (folder / name).is_file()]


def _copy(source: Path, target: Path) -> None:
    """Copy a folder as NLTK wants it: with `lexnames`, which not every package has, and safe permissions."""
    if not _lacking(target, (*FILES, LEXNAMES_FILE)):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        for file in source.iterdir():
            if file.is_file():
                shutil.copyfile(file, partial / file.name)
        numbered = ((i, name, _PARTS_OF_SPEECH[name.split(".")[0]]) for i, name in enumerate(LEXNAMES))
        (partial / LEXNAMES_FILE).write_text("".join(f"{i:02}\t{name}\t{part}\n" for i, name, part in numbered))
        partial.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)  # an incomplete one
        with suppress(OSError):  # another process was faster
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _downloaded() -> Any:
    return _in_nltk_path() if nltk.download("wordnet", quiet=True) else None


ACTS = frozenset({"noun.act", "noun.event", "noun.process"})
"""Lexicographer files of what happens."""

_CATEGORY_BY_LEXNAME = {
    **dict.fromkeys(ACTS, "motion"),
    **dict.fromkeys(["noun.animal", "noun.artifact", "noun.food", "noun.group", "noun.object"], "object"),
    **dict.fromkeys(["noun.person", "noun.plant", "noun.shape", "noun.substance"], "object"),
    **dict.fromkeys(["noun.location", "noun.phenomenon"], "scene"),
    "noun.body": "body",
}
_CATEGORY_BY_HYPERNYM = {
    **dict.fromkeys(
        """structure.n.01 facility.n.01 room.n.01 area.n.05 way.n.06 geological_formation.n.01 body_of_water.n.01
        land.n.04 location.n.01 region.n.01 ice.n.01 precipitation.n.03""".split(),  # noqa: SIM905
        "scene",
    ),
    **dict.fromkeys(["artifact.n.01", "gift.n.01", "money.n.01", "currency.n.01", "award.n.02"], "object"),
}
"""For senses of all other files, and for scenes among artifacts and natural objects, what they are kinds of decides."""

_UNSEEN_VERBS = frozenset({"verb.cognition", "verb.stative", "verb.emotion", "verb.possession"})


def category_of(synset: Synset) -> str | None:
    """The category of a sense, from its lexicographer file and what it is a kind of; None for what cannot be seen."""
    lexname = synset.lexname()
    if lexname.startswith("verb."):
        return None if lexname in _UNSEEN_VERBS else "motion"
    category = _CATEGORY_BY_LEXNAME.get(lexname)
    if category is None or lexname in ("noun.artifact", "noun.object"):
        above = {parent.name() for path in synset.hypernym_paths() for parent in path}
        found = {kind for name, kind in _CATEGORY_BY_HYPERNYM.items() if name in above}
        return "scene" if "scene" in found else next(iter(found), category)
    return category
