"""Turns a GGUF file of a Llama model into a plain Hugging Face folder in bfloat16.

Written from the GGUF specification (ggml-org/ggml, docs/gguf.md): a header of typed key-value pairs, a table of
tensors, then the tensors' data, each aligned. Three storage types are read, all that the file needs:

    F32   4 bytes an element
    Q8_0  blocks of 32 elements: float16 d, 32 int8 q;               x = d q
    Q4_1  blocks of 32 elements: float16 d, float16 m, 32 4-bit q;   x = d q + m
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from files import PreparationError
from numpy.typing import NDArray
from safetensors.torch import save_file

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_CONTROL_TOKEN = 3

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class Gguf:
    """What a GGUF file holds: its metadata, and its tensors as float32 arrays read on demand."""

    meta: dict[str, Any]
    tensors: dict[str, Callable[[], NDArray[np.float32]]]


def read_gguf(path: Path) -> Gguf:
    """Open a GGUF file of version 3.

    Raises:
        PreparationError: the file is not GGUF 3, or stores a tensor in a type that is not read here.
    """
    data = np.memmap(path, dtype=np.uint8, mode="r")
    reader = _Reader(memoryview(data))
    if bytes(data[:4]) != b"GGUF" or reader.skip(4).scalar("I") != 3:
        raise PreparationError(f"{path}: is not a GGUF file of version 3")
    n_tensors, n_meta = reader.scalar("Q"), reader.scalar("Q")
    meta = {reader.string(): reader.value(reader.scalar("I")) for _ in range(n_meta)}
    table = [_tensor_entry(reader) for _ in range(n_tensors)]
    alignment = meta.get("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    unknown = sorted({kind for _, _, kind, _ in table} - set(_DECODERS))
    if unknown:
        raise PreparationError(f"{path}: tensors of GGUF types {unknown}; only {sorted(_DECODERS)} are read")
    return Gguf(meta, {name: _lazy(data[start + at :], shape, kind) for name, shape, kind, at in table})


def write_hugging_face(gguf: Gguf, folder: Path) -> None:
    """Write config, bfloat16 safetensors, tokenizer with chat template, generation config into `folder`."""
    config = _config(gguf.meta)
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    state = {}
    for name, read in gguf.tensors.items():
        tensor = torch.from_numpy(read())
        for part, count in heads.items():
            if f".attn_{part}." in name:
                tensor = _undo_rope_order(tensor, count)
        state[_hugging_face_name(name)] = tensor.to(torch.bfloat16).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for file, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _write_tokenizer(gguf.meta, folder)


class _Reader:
    """A cursor over the header of a GGUF file."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0

    def skip(self, count: int) -> _Reader:
        self.at += count
        return self

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        self.at += length
        return bytes(self._data[self.at - length : self.at]).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.scalar("I"), self.scalar("Q")
            return [self.value(item) for _ in range(count)]
        return self.scalar(_SCALARS[kind])


def _tensor_entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape (slowest axis first), storage type, and offset of one tensor."""
    name = reader.string()
    shape = tuple(reader.scalar("Q") for _ in range(reader.scalar("I")))[::-1]
    return name, shape, reader.scalar("I"), reader.scalar("Q")


def _lazy(data: NDArray[np.uint8], shape: tuple[int, ...], kind: int) -> Callable[[], NDArray[np.float32]]:
    block_bytes, block_items, decode = _DECODERS[kind]
    blocks = int(np.prod(shape)) // block_items

    def read() -> NDArray[np.float32]:
        return decode(data[: blocks * block_bytes].reshape(blocks, block_bytes)).reshape(shape)

    return read


def _f32(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(blocks).view(np.float32).copy()


def _q8_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_1(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    packed = blocks[:, 4:]  # 16 bytes: elements 0-15 in the low halves, 16-31 in the high ones
    quants = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    return _half(blocks[:, :2]) * quants + _half(blocks[:, 2:4])


def _half(two_bytes: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(two_bytes).view(np.float16).astype(np.float32)


_DECODERS = {0: (4, 1, _f32), 3: (20, 32, _q4_1), 8: (34, 32, _q8_0)}  # bytes and elements of a block


def _undo_rope_order(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k from llama.cpp's order (pairs side by side) to Hugging Face's (halves of each head)."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _hugging_face_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{_IN_LAYER[part]}.{suffix}"


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    if meta["general.architecture"] != "llama":
        raise PreparationError(f"the GGUF file holds a {meta['general.architecture']} model, not a llama")
    llama = {key.removeprefix("llama."): value for key, value in meta.items() if key.startswith("llama.")}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
        "hidden_size": llama["embedding_length"],
        "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"],
        "num_attention_heads": llama["attention.head_count"],
        "num_key_value_heads": llama["attention.head_count_kv"],
        "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": llama["attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": llama["rope.freq_base"]},
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    """A byte-level BPE that splits digits one by one: llama.cpp's pre-tokenizer `smollm`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise PreparationError("the GGUF file's tokenizer is not SmolLM's byte-level BPE")
    words = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    control = [word for word, kind in zip(words, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in control])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=words[meta["tokenizer.ggml.bos_token_id"]],
        eos_token=words[meta["tokenizer.ggml.eos_token_id"]],
        pad_token=words[meta["tokenizer.ggml.padding_token_id"]],
        unk_token=words[meta["tokenizer.ggml.unknown_token_id"]],
        chat_template=meta["tokenizer.chat_template"],
        model_max_length=meta["llama.context_length"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
