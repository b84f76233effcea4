"""How far pictures are from one another: PSNR, SSIM, LPIPS where its weights can be had, and Fréchet distances.

Images are [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VALUE_RANGE = 2.0
WINDOW_PX, WINDOW_SIGMA = 11, 1.5
STABILISERS = ((0.01 * VALUE_RANGE) ** 2, (0.03 * VALUE_RANGE) ** 2)


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """[B] dB: 10 log10(range² / mean squared error) of each image; infinite where they are equal."""
    return 10 * torch.log10(VALUE_RANGE**2 / (images - targets).square().mean((1, 2, 3)))


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """[B] in [-1, 1], 1 where equal: structural similarity (Wang et al. 2004), the mean over windows and channels.

    A window is 11x11 px, Gaussian of sigma 1.5, wholly inside the image. Raises ValueError for smaller images.
    """
    if min(images.shape[-2:]) < WINDOW_PX:
        raise ValueError(f"images of {tuple(images.shape[-2:])} px: SSIM's window needs {WINDOW_PX} px each way")
    means = [_window_mean(x) for x in (images, targets, images.square(), targets.square(), images * targets)]
    mean_x, mean_y, square_x, square_y, product = means
    var_x, var_y = square_x - mean_x.square(), square_y - mean_y.square()
    c1, c2 = STABILISERS
    similarity = (2 * mean_x * mean_y + c1) * (2 * (product - mean_x * mean_y) + c2)
    similarity = similarity / ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3))


def frechet_distance(features: Tensor, targets: Tensor) -> float:
    """|m − n|² + tr(S + T − 2 (S T)^(1/2)), of the means m, n and covariances S, T of two sets [N, D], [M, D].

    It is called FID only with the features of the Inception network; name the features where you report it.
    """
    if min(len(features), len(targets)) < 2:
        raise ValueError(f"{len(features)} and {len(targets)} feature vectors: a covariance needs at least two")
    x, y = features.double(), targets.double()
    cov_x, cov_y = torch.atleast_2d(x.T.cov()), torch.atleast_2d(y.T.cov())
    root = _psd_root(cov_x)
    # tr (S T)^(1/2) = tr (S^(1/2) T S^(1/2))^(1/2), whose matrix is symmetric
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum()
    distance = (x.mean(0) - y.mean(0)).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross
    return max(0.0, float(distance))


def load_lpips() -> nn.Module:
    """The LPIPS network with AlexNet: called with two batches of images, it gives [B, 1, 1, 1].

    Raises ImportError with what to install where the package is absent. The package fetches AlexNet's weights itself
    and raises URLError where it cannot.
    """
    try:
        from lpips import LPIPS  # pyright: ignore[reportMissingImports] - optional
    except ImportError as error:
        raise ImportError(
            "LPIPS needs the package lpips (pip install lpips), torchvision, and a network or a torch hub cache that "
            "holds AlexNet's weights; leave --is_lpips_wanted out to do without"
        ) from error
    return LPIPS(net="alex", verbose=False).eval()


def _window_mean(x: Tensor) -> Tensor:
    """[B, 3, H − 10, W − 10] Gaussian means of the windows of x [B, 3, H, W]."""
    offset = torch.arange(WINDOW_PX, dtype=x.dtype, device=x.device) - WINDOW_PX // 2
    weights = torch.exp(-offset.square() / (2 * WINDOW_SIGMA**2))
    weights = weights / weights.sum()
    rows = F.conv2d(x.flatten(0, 1).unsqueeze(1), weights.view(1, 1, 1, -1))
    return F.conv2d(rows, weights.view(1, 1, -1, 1)).squeeze(1).unflatten(0, x.shape[:2])


def _psd_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
