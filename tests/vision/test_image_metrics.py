"""Image distances against hand-computed values and slow loops."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from posttrain.vision.image_metrics import frechet_distance, load_lpips, psnr, ssim


def test_psnr_of_a_constant_error():
    # An error of .2 in a range of 2: 10 log10(4 / .04) = 20 dB; equal images have no error.
    target = torch.zeros(2, 3, 4, 4)
    result = psnr(target + torch.tensor([0.2, 0.0]).view(2, 1, 1, 1), target)
    assert result[0].item() == pytest.approx(20.0, abs=1e-4)
    assert math.isinf(result[1].item())


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Loops over channels and windows, from the definition; x, y [3, H, W] in a range of 2."""
    weight = np.array(
        [[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in range(11)] for i in range(11)]
    )
    weight /= weight.sum()
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    values = []
    for channel in range(3):
        for row in range(x.shape[1] - 10):
            for column in range(x.shape[2] - 10):
                a = x[channel, row : row + 11, column : column + 11]
                b = y[channel, row : row + 11, column : column + 11]
                mean_a, mean_b = (weight * a).sum(), (weight * b).sum()
                var_a, var_b = (weight * (a - mean_a) ** 2).sum(), (weight * (b - mean_b) ** 2).sum()
                covariance = (weight * (a - mean_a) * (b - mean_b)).sum()
                luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
                values.append(luminance * (2 * covariance + c2) / (var_a + var_b + c2))
    return float(np.mean(values))


def test_ssim_equals_a_loop_over_windows():
    x, y = (torch.rand(2, 3, 13, 14, dtype=torch.float64) * 2 - 1 for _ in range(2))
    y = 0.6 * x + 0.4 * y
    expected = [slow_ssim(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(ssim(x, y), torch.tensor(expected, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="needs 11 px"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_frechet_distance_of_two_lines_by_hand():
    # Variances 4/3 and 16/3, means 0 and 3: 9 + 4/3 + 16/3 - 2 sqrt(64/9) = 9 + 4/3.
    x = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    assert frechet_distance(x, 3 + 2 * x) == pytest.approx(9 + 4 / 3)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-12)


def test_frechet_distance_uses_the_root_of_the_product_of_covariances():
    x = torch.randn(50, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64)
    y = torch.randn(60, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 1
    s, t = np.cov(x.numpy().T), np.cov(y.numpy().T)
    means = (x.mean(0) - y.mean(0)).square().sum().item()
    expected = means + np.trace(s + t - 2 * np.real(sqrtm(s @ t)))
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


@pytest.mark.skipif(importlib.util.find_spec("lpips") is not None, reason="the package lpips is installed")
def test_lpips_says_what_it_needs_where_it_is_absent():
    with pytest.raises(ImportError, match="pip install lpips"):
        load_lpips()
