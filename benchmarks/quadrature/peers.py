"""The peers' integrals: scipy's composite rules, and emukit's Bayesian quadrature where it is installed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import simpson, trapezoid
from scipy.interpolate import CubicSpline

Array = NDArray[np.float64]
Integrate = Callable[[Array, Array], Array]  # times [N], samples [S, N] -> integrals [S]


def scipy_trapezoid(times: Array, samples: Array) -> Array:
    return trapezoid(samples, x=times, axis=-1)


def scipy_simpson(times: Array, samples: Array) -> Array:
    return simpson(samples, x=times, axis=-1)


def scipy_spline(times: Array, samples: Array) -> Array:
    return CubicSpline(times, samples, axis=-1).integrate(times[0], times[-1])


def emukit_matern(p: int, lengthscale: float, length: float) -> Callable[[Array], tuple[Array, float]]:
    """Weights and variance at given times, by emukit's embeddings and its order of operations.

    The Gram matrix is emukit's to ask a kernel for (GPy's, usually); here it is written out. `integrate` of emukit's
    VanillaBayesianQuadrature solves with that matrix in float64, and so do we.
    """
    from emukit.quadrature.interfaces import standard_kernels
    from emukit.quadrature.kernels import quadrature_matern12, quadrature_matern32, quadrature_matern52
    from emukit.quadrature.measures import BoxDomain, LebesgueMeasure

    interface, module, name = {
        0: (standard_kernels.IProductMatern12, quadrature_matern12, "QuadratureProductMatern12LebesgueMeasure"),
        1: (standard_kernels.IProductMatern32, quadrature_matern32, "QuadratureProductMatern32LebesgueMeasure"),
        2: (standard_kernels.IProductMatern52, quadrature_matern52, "QuadratureProductMatern52LebesgueMeasure"),
    }[p]

    class Kernel(interface):  # type: ignore[misc, valid-type]
        lengthscales = np.array([lengthscale])
        variance = 1.0

        def K(self, x1: Array, x2: Array) -> Array:
            scaled = np.sqrt(2 * p + 1) * np.abs(x1 - x2.T) / lengthscale
            polynomial = {0: 1.0, 1: 1.0 + scaled, 2: 1.0 + scaled + scaled**2 / 3}[p]
            return polynomial * np.exp(-scaled)

    measure = LebesgueMeasure(BoxDomain(name="time", bounds=[(0.0, length)]))
    kernel = getattr(module, name)(Kernel(), measure, "time")

    def weights_and_variance(times: Array) -> tuple[Array, float]:
        column = times[:, None]
        embedding = kernel.qK(column)[0]
        weights = np.linalg.solve(kernel.K(column, column), embedding)
        return weights, float(kernel.qKq() - embedding @ weights)

    return weights_and_variance
