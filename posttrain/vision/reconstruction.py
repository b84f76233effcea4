"""What a tokenizer keeps of a picture: distances, the reward of what it renders, code use, prefixes, a do-test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from posttrain.vision.detector import detect
from posttrain.vision.image_metrics import frechet_distance, psnr, ssim
from posttrain.vision.image_reward import grade_images
from posttrain.vision.pictures import draw_pictures
from posttrain.vision.prompts import ImagePrompt
from posttrain.vision.quantiser import entropy
from posttrain.vision.tokenizer import VisualTokenizer

SAME_CODE = 0.99  # cosine above which two codes say the same; a codebook larger than needed holds near copies


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Means over pictures unless said otherwise."""

    strict: float  # share of rendered pictures that still satisfy the prompt they were drawn for
    mean_checks: float  # share of passed checks
    psnr: float  # dB
    ssim: float
    frechet_pixels: float  # between sets; features: the pixels
    frechet_things: float  # between sets; features: the detector's map of things
    n_codes_used: float  # of the codebook, by this set
    position_perplexity: float  # codes in effective use at a position, mean over positions
    changed_by_rendering: float  # share of tokens that say something else once the picture is rendered
    changed_by_suffix: float  # see `do_test`
    prefix_mse: tuple[float, ...]  # [K + 1] squared error of the picture from the first 0 to K tokens

    def to_dict(self) -> dict[str, float]:
        """Flat, with prefix_mse as prefix_mse_0, prefix_mse_1, ..."""
        values = asdict(self)
        curve = values.pop("prefix_mse")
        return values | {f"prefix_mse_{length}": value for length, value in enumerate(curve)}


def judge_tokenizer(
    tokenizer: VisualTokenizer, prompts: Sequence[ImagePrompt], *, n_pictures: int, seed: int
) -> Reconstruction:
    """Measures on `n_pictures` pictures drawn for these prompts, the families in turn."""
    generator, world = torch.Generator().manual_seed(seed), tokenizer.world
    prompts, images = draw_pictures(world, prompts, n_pictures, generator)
    images = images.to(tokenizer.quantiser.codebook.device)
    ids = tokenizer.encode(images)
    rendered = tokenizer.decode(ids)
    grades = grade_images(world, prompts, rendered)
    things, things_kept = (detect(world, x).flatten(1).float() for x in (images, rendered))
    use = torch.nn.functional.one_hot(ids, tokenizer.codebook_size).float().mean(0)
    return Reconstruction(
        strict=sum(grade.strict for grade in grades) / n_pictures,
        mean_checks=sum(grade.mean for grade in grades) / n_pictures,
        psnr=float(psnr(rendered, images).mean()),
        ssim=float(ssim(rendered, images).mean()),
        frechet_pixels=frechet_distance(rendered.flatten(1), images.flatten(1)),
        frechet_things=frechet_distance(things_kept, things),
        n_codes_used=float((use.sum(0) > 0).sum()),
        position_perplexity=float(entropy(use).exp().mean()),
        changed_by_rendering=float(_is_changed(tokenizer, ids, tokenizer.encode(rendered)).float().mean()),
        changed_by_suffix=do_test(tokenizer, ids, generator),
        prefix_mse=prefix_errors(tokenizer, images, ids),
    )


def prefix_errors(tokenizer: VisualTokenizer, images: Tensor, ids: Tensor) -> tuple[float, ...]:
    """[K + 1] mean squared errors of the pictures from the first 0, 1, ..., K tokens of ids [B, K] in AR order."""
    lengths = range(tokenizer.n_tokens + 1)
    return tuple(float((tokenizer.decode(ids[:, :length]) - images).square().mean()) for length in lengths)


def do_test(tokenizer: VisualTokenizer, ids: Tensor, generator: torch.Generator) -> float:
    """Does a later token rewrite what earlier ones say? The share of tokens before an exchanged one that change.

    In each row of ids [B, K] (AR order) one token, any but the first, is set to another picture's at that place. Both
    rows are rendered and tokenized again; counted are the tokens before the place that then differ, by more than near
    copies of a code do. Without any effect on what stands before, P(V_<i | do(V_i)) = P(V_<i), it is 0. It is a
    measurement, not a pass mark: it also counts what the renderer fails to draw.
    """
    n, n_tokens = ids.shape
    place = torch.randint(1, n_tokens, (n, 1), generator=generator).to(ids.device)
    exchanged = ids.scatter(1, place, ids.roll(1, 0).gather(1, place))
    before, after = (tokenizer.encode(tokenizer.decode(row)) for row in (ids, exchanged))
    is_earlier = torch.arange(n_tokens, device=ids.device) < place
    return float(_is_changed(tokenizer, before, after)[is_earlier].float().mean())


def _is_changed(tokenizer: VisualTokenizer, before: Tensor, after: Tensor) -> Tensor:
    """[B, K] bool: tokens whose codes are not the same, nor near copies."""
    codes = tokenizer.quantiser
    return (codes.lookup(before) * codes.lookup(after)).sum(-1) < SAME_CODE
