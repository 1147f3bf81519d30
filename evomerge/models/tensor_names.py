"""Where a tensor sits in a model: its layer and its module group.

Works on names alone, for any language model, with towers for other senses or without: the layers are the numbered
module list that holds the most tensors of the text model, and the module group is read off the first telling part
of the name. No architecture tables.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

Shapes = Mapping[str, tuple[int, ...]]
MadeOf = Mapping[str, tuple[str, ...]]  # live tensor -> the names in the base's files that it is made of

TEXT_MODULES = ("attention", "mlp", "norm", "embedding", "head", "other")
# what models have besides text: encoders, and heads that predict several tokens
TOWERS = (
    "vision",
    "audio",
    "mtp",
)
MODULES = (*TEXT_MODULES, *TOWERS)

# Read part by part from the left, first match wins: `post_attention_layernorm` is a norm, `self_attn.q_norm`
# belongs to attention. Token mixers that are no attention (Mamba, RWKV) count as attention. A projector belongs to
# the tower that it comes from.
_PATTERNS = (
    ("audio", re.compile(r"audio|speech|sound|^wav|whisper")),
    (
        "vision",
        re.compile(
            r"vision|visual|image|^vit$|siglip|multi_?modal|^mm_|projector|connector|resampler|qformer|"
            r"abstractor|aligner|vqmodel|query_tokens|patch_embed|^perceiver|view_sep"
        ),
    ),
    ("mtp", re.compile(r"^mtp|nextn|multi_token")),
    ("norm", re.compile(r"norm|^ln_|^ln\d*$")),
    ("head", re.compile(r"^lm_head$|^embed_out$|^output_projection$|^score$")),
    ("embedding", re.compile(r"embed|^wte$|^wpe$")),
    ("attention", re.compile(r"attn|attention|mixer|mamba|^ssm|time_mix")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|moe|expert|^fc\d*$|channel_mix")),
)

_NUMBERED = re.compile(r"^(.*?)\.(\d+)\.")


@dataclass(frozen=True)
class Place:
    """Where one tensor sits.

    Attributes:
        layer: the number of its layer. Tensors before the first layer (embeddings, towers for images and sounds)
            have 0, those after the last one (final norm, heads) have the last layer's number.
        module: its module group, one of `MODULES`.
        inside: whether it belongs to one of the layers.
        name: its whole name.
    """

    layer: int
    module: str
    inside: bool
    name: str = ""


def module_of(name: str) -> str:
    """The module group of a tensor: one of `MODULES`.

    >>> module_of("model.layers.3.self_attn.q_norm.weight")
    'attention'
    """
    return _match(name)[0]


def telling_part(name: str) -> str:
    """The part of a tensor's name that tells its module group; the whole name if none does.

    >>> telling_part("model.layers.3.self_attn.q_norm.weight")
    'self_attn'
    """
    return _match(name)[1]


def _match(name: str) -> tuple[str, str]:
    """The module group of a tensor, and the part of its name that tells it."""
    for part in name.split("."):
        for module, pattern in _PATTERNS:
            if pattern.search(part):
                return module, part
    return "other", name


def places(names: Iterable[str], carried: Collection[str] = ()) -> dict[str, Place]:
    """The place of every tensor of a model, given all their names.

    Args:
        carried: the names of those that the live model does not build. What stands in a layer after the last one
            that is built belongs to `mtp`: DeepSeek's and GLM's checkpoints number these heads on.
    """
    names = list(names)
    layers = _layers(name for name in names if name not in carried)
    numbered = {name: match for name in names if (match := _NUMBERED.match(name))}
    inside = {name: int(match.group(2)) for name, match in numbered.items() if match.group(1) == layers}
    last = max((number for name, number in inside.items() if name not in carried), default=0)
    placed = {}
    for name in names:
        module = module_of(name)
        if inside.get(name, last) > last:
            placed[name] = Place(last, "mtp", inside=False, name=name)
        elif name in inside:
            placed[name] = Place(inside[name], module, inside=True, name=name)
        else:
            first = module in ("embedding", "vision", "audio")
            placed[name] = Place(0 if first else last, module, inside=False, name=name)
    return placed


def _layers(names: Iterable[str]) -> str | None:
    """The name of the list of layers; None where no list is numbered. Towers have lists of their own."""
    numbered = [match.group(1) for name in names if (match := _NUMBERED.match(name))]
    text = [prefix for prefix in numbered if module_of(prefix) not in TOWERS]
    counted = Counter(text or numbered)
    return counted.most_common(1)[0][0] if counted else None


def is_pattern(key: str) -> bool:
    """Whether a key is a pattern of tensors' names (`*q_proj*`), or a whole name, and no module group."""
    return key != "*" and any(sign in key for sign in "*?[.")


def key_of(keys: Iterable[str], place: Place) -> str | None:
    """The first pattern in `keys` that matches the tensor's name, else its module group if that is a key.

    >>> key_of(["*q_proj*", "attention"], Place(3, "attention", True, "model.layers.3.self_attn.q_proj.weight"))
    '*q_proj*'
    """
    keys = list(keys)
    for key in keys:
        if is_pattern(key) and fnmatchcase(place.name, key):
            return key
    return place.module if place.module in keys else None


def layer_count(places: Mapping[str, Place]) -> int:
    """The number of layers; 1 for a model without a numbered module list."""
    return 1 + max((place.layer for place in places.values()), default=0)


def some(names: list[str], what: str = "tensors") -> str:
    """The first few of many names, of tensors or of something else, for a message."""
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more {what}" if len(names) > 3 else "")
