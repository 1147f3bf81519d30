"""mergekit's YAML format, both ways.

`write` writes a recipe in mergekit's words, and returns None if mergekit has no words for it. `read` reads
mergekit's words, and raises a `ConfigError` that names each key for which a recipe has no words. `stages` is for
files of several merges.

mergekit draws its masks from an unseeded generator and breaks ties in magnitude by sorting, so for the methods that
drop elements its model is a sibling of ours and not its copy.
"""

from __future__ import annotations

from evomerge.recipes.mergekit_yaml.config import Config
from evomerge.recipes.mergekit_yaml.dialects import DIALECTS, SUPPORTED
from evomerge.recipes.mergekit_yaml.reading import is_one, other_tool, read
from evomerge.recipes.mergekit_yaml.writing import write

__all__ = ["DIALECTS", "SUPPORTED", "Config", "is_one", "other_tool", "read", "write"]
