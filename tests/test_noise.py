"""The generator is the published one, and draws that must be independent are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from qspec.noise import NoiseKey, Purpose, gumbel, gumbel_of, philox, uniform

KEY = NoiseKey(seed=0x0123456789ABCDEF, choice=3)
MANY = 20_000

# Random123, tests/kat_vectors, "philox4x32 10": counter words, key words, output words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_random123(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    seed = key[0] | key[1] << 32
    assert philox(counter, seed) == expected
    # Among others in an array, so that an element that leaks into its neighbours is seen as well.
    c0, c1, c2, c3 = (np.array([7, word, 9], dtype=np.uint64) for word in counter)
    assert tuple(int(word[1]) for word in philox((c0, c1, c2, c3), seed)) == expected


def test_a_draw_is_addressed_as_documented() -> None:
    key = NoiseKey(seed=5, choice=2)
    position = 77
    for count in (12, 1000):
        numbers = uniform(key, position, Purpose.RESIDUAL, count)
        for token in (0, 1, 7, count - 1):
            words = philox((token // 4, position, int(Purpose.RESIDUAL) + 256 * key.choice, 0), key.seed)
            assert numbers[token] == (words[token % 4] + 0.5) / 2**32


@pytest.mark.parametrize("count", [1, 3, 16, 17, 200])
def test_some_tokens_have_the_noise_that_they_have_among_all(count: int) -> None:
    token_ids = np.sort(np.random.default_rng(count).choice(5000, count, replace=False)).astype(np.int64)
    everyone = gumbel(KEY, 8, Purpose.COUPLED, 5000)
    assert np.array_equal(gumbel_of(KEY, 8, Purpose.COUPLED, token_ids), everyone[token_ids])


def test_the_count_does_not_change_a_value() -> None:
    longest = gumbel(KEY, 5, Purpose.DRAFT, 101)
    for count in (1, 2, 3, 4, 5, 63, 64, 100):
        assert np.array_equal(gumbel(KEY, 5, Purpose.DRAFT, count), longest[:count])


def test_uniform_over_tokens_and_over_positions() -> None:
    over_tokens = uniform(KEY, 1, Purpose.ACCEPT, MANY)
    over_positions = np.array([uniform(KEY, position, Purpose.ACCEPT, 1)[0] for position in range(3000)])
    for sample in (over_tokens, over_positions):
        counts, _ = np.histogram(sample, bins=50, range=(0.0, 1.0))
        assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("changed", ["purpose", "position", "choice", "seed_low", "seed_high"])
def test_addresses_that_differ_in_one_part_are_independent(changed: str) -> None:
    samples = {
        "purpose": [uniform(KEY, 9, purpose, MANY) for purpose in Purpose],
        "position": [uniform(KEY, position, Purpose.DRAFT, MANY) for position in (0, 1, 2, 256, 2**20)],
        "choice": [uniform(NoiseKey(4, choice), 9, Purpose.DRAFT, MANY) for choice in (0, 1, 2, 65535)],
        "seed_low": [uniform(NoiseKey(seed), 9, Purpose.DRAFT, MANY) for seed in (0, 1, 2, 2**31)],
        "seed_high": [uniform(NoiseKey(seed << 32), 9, Purpose.DRAFT, MANY) for seed in (0, 1, 2, 2**31)],
    }[changed]
    for first, second in itertools.combinations(samples, 2):
        table, _, _ = np.histogram2d(first, second, bins=8, range=((0, 1), (0, 1)))
        assert stats.chisquare(table.reshape(-1)).pvalue > 1e-5
        assert abs(float(np.corrcoef(first, second)[0, 1])) < 5 / MANY**0.5


def test_gumbel_is_finite_at_both_ends_and_has_its_mean_and_variance() -> None:
    smallest, largest = 0.5 * 2.0**-32, (2.0**32 - 0.5) * 2.0**-32
    assert 0.0 < smallest < largest < 1.0
    assert np.isfinite(-np.log(-np.log(np.array([smallest, largest])))).all()
    noise = gumbel(KEY, 3, Purpose.COUPLED, MANY)
    assert np.isfinite(noise).all()
    assert abs(noise.mean() - np.euler_gamma) < 0.04
    assert abs(noise.var() - np.pi**2 / 6) < 0.08
