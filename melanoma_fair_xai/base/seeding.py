"""Random numbers that depend on what they are for, never on what was drawn before."""

import zlib

import numpy as np


def sample_generator(seed: int, *keys: int | str) -> np.random.Generator:
    """A generator of its own for each (seed, *keys), for example (seed, epoch, index) of a sample to augment.

    Keys are integers >= 0 or strings. The same keys give the same numbers in any process, worker and order of calls.
    """
    # A spawn key, unlike a list of integers as entropy, tells (1, 2) from (1, 2, 0).
    spawn_key = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key))
