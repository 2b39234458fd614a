"""How near generated images are to real ones, from their features: Frechet distance, KID, precision and recall."""

from collections.abc import Iterator

import numpy as np

from melanoma_fair_xai.base.errors import UserError

BLOCK = 1024  # rows of a distance matrix that are held at a time


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """The squared 2-Wasserstein distance between Gaussians fitted to features (n, d) and (m, d); 0 or more.

    Its estimate is biased upwards, more so for fewer images, and NaN stands where either set has no more images than
    features: the covariance is then singular, and the figure compares with nothing.

    Heusel et al., "GANs trained by a two time-scale update rule" (NeurIPS 2017), eq. 6.
    """
    first, second = _checked(first, second)
    if min(len(first), len(second)) <= first.shape[1]:
        return float("nan")
    means = first.mean(axis=0) - second.mean(axis=0)
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    one, other = np.atleast_2d(one), np.atleast_2d(other)
    # The trace of (one @ other)^(1/2), by the eigenvalues of a symmetric matrix that is similar to the product.
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
    return max(float(means @ means + np.trace(one) + np.trace(other) - 2 * shared), 0.0)


def squared_mmd(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of features under (x . y / d + 1)^3.

    It is negative about half of the time where both come from one distribution.
    Binkowski et al., "Demystifying MMD GANs" (ICLR 2018), section 4; Gretton et al., JMLR 13 (2012), eq. 3.
    """
    first, second = _checked(first, second)
    n, m = len(first), len(second)
    if min(n, m) < 2:
        return float("nan")
    within = _kernel_sum(first, first) - _kernel(np.einsum("ij,ij->i", first, first), first.shape[1]).sum()
    others = _kernel_sum(second, second) - _kernel(np.einsum("ij,ij->i", second, second), first.shape[1]).sum()
    return float(within / (n * (n - 1)) + others / (m * (m - 1)) - 2 * _kernel_sum(first, second) / (n * m))


def kernel_distance(
    first: np.ndarray, second: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID: mean and standard deviation of `squared_mmd` over random subsets without replacement.

    The subsets hold at most half of the smaller set, so that they differ from one another.
    """
    first, second = _checked(first, second)
    size = min(subset_size, len(first) // 2, len(second) // 2)
    rng = np.random.default_rng(seed)
    values = [
        squared_mmd(rng.choice(first, size, replace=False), rng.choice(second, size, replace=False))
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def manifold_metrics(real: np.ndarray, generated: np.ndarray, neighbours: int = 5) -> dict[str, float]:
    """`precision`, `recall` (Kynkäänniemi et al., NeurIPS 2019), `density` and `coverage` (Naeem et al., ICML 2020).

    Precision: the share of generated images within the k-th neighbour's distance of some real one. Recall: the share
    of real ones within that of some generated one. Density: how many such real balls hold a generated image, over k.
    Coverage: the share of real images whose ball holds a generated one. All but density lie in [0, 1]. NaN where a
    set has no more than `neighbours` images.
    """
    real, generated = _checked(real, generated)
    if min(len(real), len(generated)) <= neighbours:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), float("nan"))
    real_radius = neighbour_distances(real, real, neighbours + 1)[0][:, -1]  # the first neighbour is itself
    generated_radius = neighbour_distances(generated, generated, neighbours + 1)[0][:, -1]
    inside = np.zeros(len(generated))
    covered, recalled = np.zeros(len(real), dtype=bool), np.zeros(len(real), dtype=bool)
    for rows, distances in distance_blocks(generated, real):
        in_ball = distances < real_radius
        inside[rows] = in_ball.sum(axis=1)
        covered |= in_ball.any(axis=0)
        recalled |= (distances < generated_radius[rows, None]).any(axis=0)
    return {
        "precision": float((inside > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(inside.mean() / neighbours),
        "coverage": float(covered.mean()),
    }


def distance_blocks(queries: np.ndarray, points: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances (rows, m) of queries (n, d) to points (m, d), some rows at a time."""
    squares = np.einsum("ij,ij->i", points, points)
    for start in range(0, len(queries), BLOCK):
        rows = slice(start, start + BLOCK)
        part = queries[rows]
        squared = np.einsum("ij,ij->i", part, part)[:, None] + squares - 2 * part @ points.T
        yield rows, np.sqrt(squared.clip(0))


def neighbour_distances(queries: np.ndarray, points: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances (n, k) of each query to its nearest points in ascending order, and their indices."""
    distances, indices = (np.empty((len(queries), neighbours), kind) for kind in (queries.dtype, np.int64))
    for rows, block in distance_blocks(queries, points):
        nearest = np.argpartition(block, neighbours - 1, axis=1)[:, :neighbours]
        found = np.take_along_axis(block, nearest, axis=1)
        order = np.argsort(found, axis=1, kind="stable")
        distances[rows] = np.take_along_axis(found, order, axis=1)
        indices[rows] = np.take_along_axis(nearest, order, axis=1)
    return distances, indices


def _kernel(products: np.ndarray, dimensions: int) -> np.ndarray:
    return (products / dimensions + 1) ** 3


def _kernel_sum(first: np.ndarray, second: np.ndarray) -> float:
    blocks = range(0, len(first), BLOCK)
    return sum(_kernel(first[start : start + BLOCK] @ second.T, first.shape[1]).sum() for start in blocks)


def _checked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise UserError("--feature_model: its features are not finite; choose another")
    return first, second
