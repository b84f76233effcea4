"""The published networks once more, in NumPy and loops: one image, one head, one query at a time.

Weights are read by the names of the published files. Nothing here is shared with the library but those names.
"""

from __future__ import annotations

import math

import numpy as np

Weights = dict[str, np.ndarray]


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def feed_forward(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return linear(w, f"{name}.fc2", gelu(linear(w, f"{name}.fc1", x)))


def norm(row: np.ndarray) -> np.ndarray:
    return (row - row.mean()) / math.sqrt(row.var() + 1e-6)


def time_vector(w: Weights, name: str, time: float) -> np.ndarray:
    angles = [time / 10_000 ** (i / 128) for i in range(128)]
    waves = np.array([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    return linear(w, f"{name}.mlp.2", silu(linear(w, f"{name}.mlp.0", waves)))


def modulation(w: Weights, name: str, condition: np.ndarray, n: int) -> list[np.ndarray]:
    return np.split(linear(w, f"{name}.adaLN_modulation.1", silu(condition)), n)


def read(query: np.ndarray, keys: list[np.ndarray], values: list[np.ndarray], n_heads: int) -> np.ndarray:
    """Softmax attention of one query over the keys it may see."""
    out = []
    for q, k, v in zip(
        np.split(query, n_heads),
        np.split(np.array(keys), n_heads, axis=1),
        np.split(np.array(values), n_heads, axis=1),
        strict=True,
    ):
        scores = np.array([q @ key for key in k]) / math.sqrt(len(q))
        p = np.exp(scores - scores.max())
        out.append((p / p.sum()) @ v)
    return np.concatenate(out)


def patches(w: Weights, name: str, latents: np.ndarray, patch: int) -> list[np.ndarray]:
    kernel, bias = w[f"{name}.proj.weight"], w[f"{name}.proj.bias"]
    _, height, width = latents.shape
    return [
        np.array([(kernel[o] * latents[:, y : y + patch, x : x + patch]).sum() for o in range(len(bias))]) + bias
        for y in range(0, height, patch)
        for x in range(0, width, patch)
    ]


def middle_rows(table: np.ndarray, side: int) -> list[np.ndarray]:
    grid = math.isqrt(table.shape[1])
    first = (grid - side) // 2
    return [table[0, (first + y) * grid + first + x] for y in range(side) for x in range(side)]


def encode(w: Weights, latents: np.ndarray, *, patch: int, image_heads: int, query_heads: int) -> np.ndarray:
    """[K] indexes of one latent image [C, H, W], and [K, D] the directions before the look-up."""
    side = latents.shape[1] // patch
    image = [
        p + q
        for p, q in zip(
            patches(w, "encoder.x_embedder", latents, patch), middle_rows(w["encoder.pos_embed"], side), strict=True
        )
    ]
    queries = list(w["encoder.query_tokens"][0])
    n_blocks = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("encoder.blocks."))
    for i in range(n_blocks):
        image, queries = _dual_block(w, f"encoder.blocks.{i}", image, queries, image_heads, query_heads)
    z = np.array([linear(w, "encoder.quantizer.project_in", q) for q in queries])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return (z @ w["encoder.quantizer._codebook.embed"][0].T).argmax(axis=1)


def _dual_block(w, name, image, queries, image_heads, query_heads):
    mods = [modulation(w, name, time_vector(w, f"{name}.t_embedder", 1000 + 8 * k), 6) for k in range(len(queries))]
    image_qkv = [np.split(linear(w, f"{name}.attn.qkv", norm(x)), 3) for x in image]
    shown = [np.split(linear(w, f"{name}.attn.to_query_kv", norm(x)), 2) for x in image]
    query_qkv = [
        np.split(linear(w, f"{name}.attn.query_linear", norm(q) * (1 + m[1]) + m[0]), 3)
        for q, m in zip(queries, mods, strict=True)
    ]
    image_keys, image_values = [x[1] for x in image_qkv], [x[2] for x in image_qkv]
    keys = [x[0] for x in shown] + [q[1] for q in query_qkv]
    values = [x[1] for x in shown] + [q[2] for q in query_qkv]
    new_image = []
    for x, (q, _, _) in zip(image, image_qkv, strict=True):
        x = x + linear(w, f"{name}.attn.proj", read(q, image_keys, image_values, image_heads))
        new_image.append(x + feed_forward(w, f"{name}.mlp", norm(x)))
    new_queries = []
    for x, (q, _, _), m in zip(queries, query_qkv, mods, strict=True):
        x = x + m[2] * linear(w, f"{name}.attn.query_proj", read(q, keys, values, query_heads))
        new_queries.append(x + m[5] * feed_forward(w, f"{name}.q_mlp", norm(x) * (1 + m[4]) + m[3]))
    return new_image, new_queries


def code_vectors(w: Weights, indexes: np.ndarray) -> np.ndarray:
    scale, shift = w["encoder.final_layer_norm3.weight"], w["encoder.final_layer_norm3.bias"]
    return np.array([norm(w["encoder.quantizer._codebook.embed"][0, i]) * scale + shift for i in indexes])


def velocity(w: Weights, noisy: np.ndarray, t: float, codes, is_token, *, patch: int, n_heads: int) -> np.ndarray:
    side = noisy.shape[1] // patch
    start = patches(w, "model.x_embedder", noisy, patch)
    image = [p + q for p, q in zip(start, middle_rows(w["model.pos_embed"], side), strict=True)]
    return _joint(w, image, 1000 * t, codes, is_token, patch, n_heads, tokens_see_image=True)


def render(w: Weights, codes, is_token, *, patch: int, n_heads: int) -> np.ndarray:
    canvas = np.broadcast_to(w["model.mask_token"][0], w["model.positional_embedding"].shape)
    image = list(canvas + w["model.positional_embedding"])
    return _joint(w, image, 1000.0, codes, is_token, patch, n_heads, tokens_see_image=False)


def _joint(w, image, time, codes, is_token, patch, n_heads, *, tokens_see_image):
    width = len(image[0])
    moment = time_vector(w, "model.t_embedder", time)
    tokens = []
    for k, (code, is_there) in enumerate(zip(codes, is_token, strict=True)):
        position = 1000 + 8 * k
        waves = [position / 10_000 ** (2 * i / width) for i in range(width // 2)]
        place = np.array([math.sin(a) for a in waves] + [math.cos(a) for a in waves]).astype(np.float32)
        tokens.append(linear(w, "model.context_embedder", code * float(is_there)) + place)
    n_blocks = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("model.joint_blocks."))
    for i in range(n_blocks):
        is_last = i == n_blocks - 1
        ours, theirs = f"model.joint_blocks.{i}.context_block", f"model.joint_blocks.{i}.x_block"
        if is_last:
            token_mods = [modulation(w, ours, moment, 2)] * len(tokens)
        else:
            token_mods = [
                modulation(w, ours, time_vector(w, f"{ours}.t_embedder", 1000 + 8 * k), 6) for k in range(len(tokens))
            ]
        m = modulation(w, theirs, moment, 6)
        token_qkv = [
            np.split(linear(w, f"{ours}.attn.qkv", norm(x) * (1 + n[1]) + n[0]), 3)
            for x, n in zip(tokens, token_mods, strict=True)
        ]
        image_qkv = [np.split(linear(w, f"{theirs}.attn.qkv", norm(x) * (1 + m[1]) + m[0]), 3) for x in image]
        seen = [qkv for qkv, is_there in zip(token_qkv, is_token, strict=True) if is_there]
        by_image = seen + image_qkv
        by_tokens = by_image if tokens_see_image else seen
        if not is_last:
            tokens = [
                _close(w, ours, x, read(qkv[0], [o[1] for o in by_tokens], [o[2] for o in by_tokens], n_heads), n)
                for x, qkv, n in zip(tokens, token_qkv, token_mods, strict=True)
            ]
        image = [
            _close(w, theirs, x, read(qkv[0], [o[1] for o in by_image], [o[2] for o in by_image], n_heads), m)
            for x, qkv in zip(image, image_qkv, strict=True)
        ]
    shift, scale = modulation(w, "model.final_layer", moment, 2)
    rows = [linear(w, "model.final_layer.linear", norm(x) * (1 + scale) + shift) for x in image]
    return _unpatch(rows, patch)


def _close(w, name, x, what_it_read, m):
    x = x + m[2] * linear(w, f"{name}.attn.proj", what_it_read)
    return x + m[5] * feed_forward(w, f"{name}.mlp", norm(x) * (1 + m[4]) + m[3])


def _unpatch(rows: list[np.ndarray], patch: int) -> np.ndarray:
    side = math.isqrt(len(rows))
    channels = len(rows[0]) // patch**2
    out = np.zeros((channels, side * patch, side * patch))
    for n, row in enumerate(rows):
        for i in range(patch):
            for j in range(patch):
                for c in range(channels):
                    out[c, n // side * patch + i, n % side * patch + j] = row[(i * patch + j) * channels + c]
    return out
