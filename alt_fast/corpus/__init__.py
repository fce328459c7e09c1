"""The text corpus: entities of {unit, description, category} that region tokens align to (paper, section 3.1)."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from alt_fast.errors import AltFastError
from alt_fast.files import write_text

ENTITY_TEMPLATE = "{unit}: {description}"
"""What the text tower reads of an entity."""

CATEGORIES = ("object", "body", "scene", "motion")
PACKAGED = ("motion_shapes", "motion_shapes_2")
"""Corpora that come along, by name."""

FORMAT_VERSION = 1


class CorpusError(AltFastError, ValueError):
    """A corpus file that cannot be used; the message names the file and the entry."""


@dataclass(frozen=True)
class Entity:
    """One text entity. `sources` says where it comes from (labels, steps)."""

    unit: str
    description: str
    category: str
    sources: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What the text tower reads."""
        return ENTITY_TEMPLATE.format(unit=self.unit, description=self.description)


@dataclass(frozen=True)
class Corpus:
    """An ordered list of entities; the order is that of their embeddings. notes: how the corpus was made, if known."""

    entities: tuple[Entity, ...]
    notes: dict[str, Any] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.entities)

    @cached_property
    def names(self) -> list[str]:
        """What to call every entity: its unit, and where a unit has several senses, with the description."""
        counts = Counter(entity.unit for entity in self.entities)
        return [entity.unit if counts[entity.unit] == 1 else entity.text for entity in self.entities]

    def select(self, categories: Sequence[str] | None) -> "Corpus":
        """The entities of some categories (Table C3); all of them for None. Raises CorpusError when none is left."""
        if categories is None:
            return self
        if not categories:
            raise CorpusError("categories of a corpus must be at least one, or None for all")
        unknown = sorted(set(categories) - set(CATEGORIES))
        if unknown:
            raise CorpusError(f"unknown corpus category {', '.join(unknown)}; known are {', '.join(CATEGORIES)}")
        chosen = tuple(entity for entity in self.entities if entity.category in categories)
        if not chosen:
            raise CorpusError(f"the corpus has no entity of category {', '.join(categories)}")
        return Corpus(chosen, self.notes)

    def save(self, path: str | Path) -> None:
        """Write as JSON, one entity a line, so that versions can be compared. Raises FileError."""
        content = {"version": FORMAT_VERSION, **self.notes, "entities": [asdict(entity) for entity in self.entities]}
        text = ",\n".join(f"  {json.dumps(key)}: {_dump(value)}" for key, value in content.items())
        write_text(Path(path), f"{{\n{text}\n}}\n")

    @staticmethod
    def load(path: str | Path) -> "Corpus":
        """Read `save`'s format. path: a file, or the name of a corpus that comes along ("motion_shapes").

        Raises CorpusError naming file and entry.
        """
        file = Path(__file__).with_name(f"{path}.json") if str(path) in PACKAGED else Path(path)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise CorpusError(f"cannot read corpus {path}: {e}") from e
        if not isinstance(content, dict) or content.get("version") != FORMAT_VERSION:
            raise CorpusError(f"{path} is not a corpus of version {FORMAT_VERSION}")
        entries = content.get("entities")
        if not isinstance(entries, list) or not entries:
            raise CorpusError(f"corpus {path} has no entities")
        for key, what, kind in (("labels", "strings", str), ("choices", "objects", dict)):
            if key in content and not _is_list_of(content[key], kind):
                raise CorpusError(f"corpus {path}: {key!r} must be a list of {what}")
        made_with = content.get("made_with", {})
        if not isinstance(made_with, dict) or not isinstance(made_with.get("reach", 1), int):
            raise CorpusError(f"corpus {path}: 'made_with' must be an object, and its 'reach' a whole number")
        parsed = tuple(_parse(entry, f"{path}, entity {number}") for number, entry in enumerate(entries, start=1))
        return Corpus(parsed, {key: value for key, value in content.items() if key not in ("version", "entities")})


def _dump(value: Any) -> str:
    """JSON with one item of a list a line."""
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return "[\n" + ",\n".join("    " + json.dumps(item, ensure_ascii=False) for item in value) + "\n  ]"


def _parse(entry: Any, where: str) -> Entity:
    if not isinstance(entry, dict):
        raise CorpusError(f"{where}: expected an object, got {type(entry).__name__}")
    for key in ("unit", "description", "category"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise CorpusError(f"{where}: {key!r} must be a non-empty string")
    if entry["category"] not in CATEGORIES:
        raise CorpusError(f"{where}: category {entry['category']!r} is none of {', '.join(CATEGORIES)}")
    sources = [] if entry.get("sources") is None else entry["sources"]
    if not _is_list_of(sources, str):
        raise CorpusError(f"{where}: 'sources' must be a list of strings")
    return Entity(entry["unit"], entry["description"], entry["category"], sources)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)
