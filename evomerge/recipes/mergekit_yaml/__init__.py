"""mergekit's YAML format, both ways.

`write` says a recipe in mergekit's words, `read` makes a recipe of mergekit's words. What the other tool cannot say
is not written (None), or refused by the name of its key (`ConfigError`).

mergekit draws its masks from an unseeded generator and breaks ties in magnitude by sorting, so for the methods that
drop elements its model is a sibling of ours and not its copy.
"""

from __future__ import annotations

from evomerge.recipes.mergekit_yaml.dialects import DIALECTS, SUPPORTED
from evomerge.recipes.mergekit_yaml.reading import Config, is_one, read
from evomerge.recipes.mergekit_yaml.writing import write

__all__ = ["DIALECTS", "SUPPORTED", "Config", "is_one", "read", "write"]
