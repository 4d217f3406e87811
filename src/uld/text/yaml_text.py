"""YAML as plain values: texts, numbers, true, false and null in lists and mappings, with the line of every one of them.

Stricter than YAML itself. What a reader of the file would not expect is refused: a key that stands there twice, a key
that is no text, dates, tags, 010 for 8 and 1:30 for 90, and aliases that unfold to more than anybody writes.
"""

import re
from typing import Any

import yaml

DEEPEST = 32
"""Levels of lists and mappings within each other."""
MOST_NODES = 100_000
"""Values in a file, those that an alias repeats counted each time."""
_TAG = "tag:yaml.org,2002:"
_KINDS = {"null": "null", "bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text"}
_PLAIN_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)")
_MERGE = _TAG + "merge"

Lines = dict[tuple[str | int, ...], int]
"""The line of each value, counted from 1, by the keys and places that lead to it."""


class YamlError(ValueError):
    """A text that is no YAML, or says something that no setting can be.

    Attributes:
        line: Counted from 1; None where the text as a whole is at fault.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        """Take the sentence and the line."""
        super().__init__(message)
        self.line = line


def parse(text: str) -> tuple[Any, Lines]:
    """Read one YAML document.

    Returns:
        Its value, and where everything in it stands.

    Raises:
        YamlError: with the line, where there is one.
    """
    try:
        loader = _Loader(text)  # reads the first characters
        try:
            root = loader.get_single_node()
            if root is None:
                return None, {}
            value = loader.construct_document(root)
        finally:
            loader.dispose()
    except _RefusedError as error:
        raise YamlError(str(error.problem), error.line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = error.problem or error.context or "it cannot be read"
        words = f"{error.context}, {words}" if words.startswith("but ") else words
        words = f"not a YAML file: {words}"
        raise YamlError(words, mark.line + 1 if mark is not None else None) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"not a YAML file: it has a character that no text has ({error.character:#x})", line) from error
    lines: Lines = {}
    _note(root, (), lines)
    return value, lines


def _note(node: yaml.Node, path: tuple[str | int, ...], lines: Lines) -> None:
    """Note the lines of a node and of everything in it."""
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        for index, one in enumerate(node.value):
            _note(one, (*path, index), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, one in node.value:
            _note(one, (*path, key.value), lines)
            lines[*path, key.value] = key.start_mark.line + 1


class _RefusedError(yaml.MarkedYAMLError):
    """Something that YAML has and a file of settings does not."""

    def __init__(self, sentence: str, mark: Any, keys: list[str] | None = None) -> None:
        names = "".join(f"{key}: " for key in (keys or [])[-1:])
        super().__init__(problem=names + sentence, problem_mark=mark)
        self.line = mark.line + 1


class _Loader(yaml.SafeLoader):
    """Composes nodes that have a plain value, and nothing else."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._keys: list[str] = []  # those that lead to the node
        self._sizes: dict[int, tuple[int, int]] = {}  # values in a node and levels below it; none while it is composed

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._sizes:
                raise _RefusedError("an alias stands inside of what it repeats", mark, self._keys)
            return node
        named = isinstance(index, yaml.ScalarNode)
        self._keys += [index.value[:40]] if named else []
        self._depth += 1
        if self._depth > DEEPEST:
            raise _RefusedError(f"more than {DEEPEST} levels of lists and mappings", mark, self._keys)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        parts = []
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
        elif isinstance(node, yaml.MappingNode):
            _check_keys(node)
            parts = [part for pair in node.value for part in pair]
        elif node.tag == _TAG + "seq":
            parts = node.value
        if not isinstance(node, yaml.ScalarNode) and node.tag not in (_TAG + "seq", _TAG + "map"):
            raise self._refused(node, f"the tag {node.tag.replace(_TAG, '!!')} is not for settings: leave it out")
        sizes = [self._sizes[id(part)] for part in parts]
        size, below = 1 + sum(one for one, _ in sizes), 1 + max((levels for _, levels in sizes), default=0)
        if size > MOST_NODES or below > DEEPEST:
            raise _RefusedError(
                f"more than {MOST_NODES:,} values, or {DEEPEST} levels of them, with its aliases", mark, self._keys
            )
        self._sizes[id(node)] = size, below
        if named:
            self._keys.pop()
        return node

    def _refused(self, node: yaml.Node, sentence: str) -> _RefusedError:
        return _RefusedError(sentence, node.start_mark, self._keys)

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        kind = node.tag.removeprefix(_TAG)
        shown = node.value if len(node.value) <= 40 else f"{node.value[:40]}…"
        if node.tag == _MERGE:
            return
        if kind == "timestamp":
            raise self._refused(node, f"{shown} is a date to YAML, and no setting is one: put it in quotes")
        if kind not in _KINDS:
            raise self._refused(node, f"{shown!r} has the tag {kind}, which is not for settings: put it in quotes")
        if kind == "int" and not _PLAIN_INT.fullmatch(node.value) and re.match(r"[-+]?\d", node.value):
            raise self._refused(node, f"{shown} is another number to YAML than it seems: write it in plain digits")
        if kind == "float" and ":" in node.value:
            raise self._refused(node, f"{shown} is minutes and seconds to YAML: put it in quotes")
        try:
            self.yaml_constructors[node.tag](self, node)
        except (ValueError, KeyError, AttributeError, OverflowError) as error:  # what its constructors let through
            raise self._refused(node, f"{shown!r} is not {_KINDS[kind]}") from error


def _check_keys(node: yaml.MappingNode) -> None:
    """Refuse keys that are no texts, and those that stand there twice."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (_TAG + "str", _MERGE):
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise _RefusedError(f"a key must be a text, not {str(shown)[:40]}: put it in quotes", key.start_mark)
        if key.value in seen:
            raise _RefusedError(
                f"{key.value[:40]!r} stands there twice, first in line {seen[key.value]}", key.start_mark
            )
        seen[key.value] = key.start_mark.line + 1
