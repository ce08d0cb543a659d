"""Statistics against independent implementations, closed forms and exact enumeration."""

from __future__ import annotations

import functools
import time

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from weanalysis.results import statistics

Z = 1.959963984540054


def score_by_likelihood(lost: int, gained: int, num_images: int, difference: float, shift: float = 0) -> float:
    """The score of D, its nuisance parameter found by maximizing the trinomial likelihood numerically."""

    def minus_log_likelihood(gain: float) -> float:
        cells = np.array([gain + difference, gain, 1 - 2 * gain - difference])
        counts = np.array([lost, gained, num_images - lost - gained])
        return -np.sum(np.where(counts > 0, counts * np.log(np.maximum(cells, 1e-300)), 0))

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    gain = optimize.minimize_scalar(minus_log_likelihood, bounds=bounds, method="bounded", options={"xatol": 1e-13}).x
    variance = 2 * gain + difference - difference**2
    return float((lost - gained - num_images * difference + shift) / np.sqrt(num_images * variance))


NONE = {"continuity": statistics.NO_CONTINUITY}


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize(
    "counts",
    [
        (9, 3, 100),
        (3, 9, 100),
        (1, 7, 21),
        (12, 12, 40),
        (40, 2, 50),
        (5, 1, 2000),
        (300, 260, 10_000),
        (6, 0, 300),
        (0, 25, 719),
    ],
)
def test_bounds_are_where_the_likelihood_score_is_rejected(counts, corrected):
    _, low, high = (float(x) for x in statistics.paired_difference(*counts, **({} if corrected else NONE)))
    # Towards 0 and away from it where all images changed one way, else the same on either side.
    below, above = ((0.5, 0) if counts[1] == 0 else (0, 0.5) if counts[0] == 0 else (0.3, 0.3)) if corrected else (0, 0)
    assert score_by_likelihood(*counts, low, -below) == pytest.approx(Z, abs=2e-4)
    assert score_by_likelihood(*counts, high, above) == pytest.approx(-Z, abs=2e-4)


def test_bounds_solve_the_quartic_of_the_score_equation():
    # Yang, Sun and Hardin (2013): eliminating the nuisance parameter leaves a polynomial of degree four in D.
    for lost, gained, num_images in [(9, 3, 100), (2, 15, 70), (30, 10, 500), (21, 20, 1000)]:
        b, c, n, g = lost, gained, num_images, Z**2
        quartic = [
            n**2 * (n / g + 1) ** 2,
            -n * (b - c) * (n / g + 1) * (4 * n / g + 1),
            2 * n * (b - c) ** 2 * (3 * n / g + 2) / g - n**2 * ((b + c) / g + 1),
            n * (b - c) * (2 * (b + c) / g + 1) - (b - c) ** 3 * (4 * n / g + 1) / g,
            (b - c) ** 2 * ((b - c) ** 2 / g - (b + c)) / g,
        ]
        roots = np.roots(quartic)
        real = roots[np.abs(roots.imag) < 1e-6].real
        _, low, high = statistics.paired_difference(lost, gained, num_images, continuity=statistics.NO_CONTINUITY)
        assert np.abs(real - low).min() < 1e-9 and np.abs(real - high).min() < 1e-9


def test_one_sided_changes_give_wilsons_bounds():
    # With every image lost or unchanged the upper bound is Wilson's for a plain proportion; at no flips it has width.
    _, low, high = statistics.paired_difference([0, 100, 20], [0, 0, 0], [100, 100, 100], **NONE)
    wilson = [proportion_confint(k, 100, method="wilson") for k in (0, 100, 20)]
    np.testing.assert_allclose(high, [bound[1] for bound in wilson], atol=1e-12)
    assert high[0] == pytest.approx(Z**2 / (100 + Z**2), abs=1e-12) and low[0] == pytest.approx(-high[0])
    # With every image lost, the likeliest smaller D has the rest gained: D = 2p - 1 with Wilson's bound for p.
    assert low[1] == pytest.approx(2 * wilson[1][0] - 1, abs=1e-12) and high[1] == 1


def exact_coverage(num_images: int, expected_changes: float, share_lost: float, **options: float) -> float:
    """The probability that the interval holds D, summed over every outcome that is not all but impossible."""
    most = int(expected_changes + 9 * np.sqrt(expected_changes) + 14)
    lost, gained = (x.ravel() for x in np.meshgrid(np.arange(most), np.arange(most)))
    chances = np.array([share_lost, 1 - share_lost]) * expected_changes / num_images
    probability = stats.multinomial.pmf(
        np.stack([lost, gained, num_images - lost - gained], axis=1), num_images, [*chances, 1 - chances.sum()]
    )
    _, low, high = interval_table(num_images, most, **options)
    difference = chances[0] - chances[1]
    assert probability.sum() == pytest.approx(1, abs=1e-8)
    return 1 - float(probability @ ((difference < low) | (difference > high)))


@functools.cache
def interval_table(num_images: int, most: int, **options: float):
    lost, gained = (x.ravel() for x in np.meshgrid(np.arange(most), np.arange(most)))
    return statistics.paired_difference(lost, gained, num_images, **options)


@pytest.mark.parametrize("num_images", [1_000, 10_000])
def test_coverage_is_at_least_94_5_and_from_10_changes_on_at_most_97_percent(num_images):
    # The dips of plain Tango lie between 2 and 15 expected changes; the finest grid is there.
    few = np.concatenate([[0.05, 0.2, 0.5, 1], np.linspace(2, 9.7, 23)])
    many = [10, 10.5, 11, 12, 13.5, 15, 20, 22.5, 30, 50, 100]
    shares = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1]
    assert min(exact_coverage(num_images, x, share) for x in few for share in shares) >= 0.945
    coverage = {(x, share): exact_coverage(num_images, x, share) for x in many for share in shares}
    assert min(coverage.values()) >= 0.945 and max(coverage.values()) <= 0.97


def test_plain_tango_covers_less_where_few_images_change():
    # Why there is a correction at all, and that the enumeration can tell.
    assert exact_coverage(1_000, 6.5, 0.8, continuity=statistics.NO_CONTINUITY) < 0.935
    assert exact_coverage(1_000, 6.5, 0.8) > 0.945


def test_interval_is_antisymmetric_within_range_and_holds_the_estimate():
    rng = np.random.default_rng(1)
    num_images = rng.integers(1, 400, 3000)
    lost = rng.integers(0, num_images + 1)
    gained = rng.integers(0, num_images - lost + 1)
    difference, low, high = statistics.paired_difference(lost, gained, num_images)
    mirrored = statistics.paired_difference(gained, lost, num_images)
    np.testing.assert_allclose(low, -mirrored[2], atol=0)
    np.testing.assert_allclose(difference, (lost - gained) / num_images)
    assert np.all((low >= -1) & (low <= difference) & (difference <= high) & (high <= 1) & (low < high))
    wider = statistics.paired_difference(lost, gained, num_images, confidence=0.99)
    assert np.all(wider[1] <= low) and np.all(wider[2] >= high)


def test_missing_and_impossible_counts():
    difference, low, high = statistics.paired_difference([0, np.nan, 3], [0, 1, 1], [0, 10, 10])
    assert np.isnan([difference[:2], low[:2], high[:2]]).all() and difference[2] == pytest.approx(0.2)
    for counts in [(6, 5, 10), (-1, 0, 10), (0, -1, 10), (0.5, 0, 10), (0, 0, -3)]:
        with pytest.raises(ValueError, match="must"):
            statistics.paired_difference(*counts)
    with pytest.raises(ValueError, match="confidence"):
        statistics.paired_difference(1, 1, 10, confidence=95)


def test_mcnemar_against_statsmodels():
    pairs = [(0, 0), (1, 0), (4, 0), (9, 2), (5, 5), (31, 60), (700, 640)]
    expected = [mcnemar([[10, b], [c, 10]], exact=True).pvalue for b, c in pairs]
    np.testing.assert_allclose(statistics.mcnemar_exact(*np.transpose(pairs)), expected, rtol=1e-9)
    assert statistics.mcnemar_exact(4, 0) == pytest.approx(2 / 16)
    assert np.isnan(statistics.mcnemar_exact(np.nan, 1))


def test_benjamini_hochberg_by_its_definition():
    p_value = np.random.default_rng(2).uniform(size=60) ** 3
    p_value[[4, 17]] = np.nan
    known = np.sort(p_value[~np.isnan(p_value)])
    expected = [
        min(1.0, min(known[j] * len(known) / (j + 1) for j in range(len(known)) if known[j] >= p)) for p in p_value[:4]
    ]
    adjusted = statistics.adjust_bh(p_value)
    np.testing.assert_allclose(adjusted[:4], expected)
    assert np.isnan(adjusted[[4, 17]]).all() and not np.isnan(np.delete(adjusted, [4, 17])).any()
    np.testing.assert_allclose(statistics.adjust_bh([0.01, 0.04, 0.03, 0.5]), [0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert np.isnan(statistics.adjust_bh([np.nan, np.nan])).all() and statistics.adjust_bh([]).size == 0
    with pytest.raises(ValueError):
        statistics.adjust_bh([0.5, 1.2])


def test_holm_against_statsmodels():
    p_value = np.random.default_rng(7).uniform(size=40) ** 3
    p_value[[3, 21]] = np.nan
    known = ~np.isnan(p_value)
    adjusted = statistics.adjust_holm(p_value)
    np.testing.assert_allclose(adjusted[known], multipletests(p_value[known], method="holm")[1])
    assert np.isnan(adjusted[~known]).all() and statistics.adjust_holm([]).size == 0
    with pytest.raises(ValueError, match="0, 1"):
        statistics.adjust_holm([0.5, -0.1])


def chosen_rows(lost: np.ndarray, gained: np.ndarray, num_images: int, count: int) -> pd.DataFrame:
    rows = statistics.drop_table(pd.DataFrame({"lost": lost, "gained": gained, "num_images": num_images}))
    rows["num_flipped"] = rows["lost"] + rows["gained"]
    return rows.nlargest(count, "drop")


def test_chosen_rows_have_the_interval_of_their_number():
    lost, gained = np.arange(465) % 30, np.arange(465) % 7
    rows = chosen_rows(lost, gained, 719, 5)
    chosen = statistics.selected_intervals(rows, 465)
    level = 1 - 5 * 0.05 / 465
    _, low, high = statistics.paired_difference(rows["lost"], rows["gained"], 719, level)
    np.testing.assert_allclose(chosen[["selected_low", "selected_high"]].T, 100 * np.stack([low, high]))
    pd.testing.assert_frame_equal(chosen[rows.columns], rows)  # the row's own interval stays
    early = statistics.selected_intervals(rows, 465, stopped=True)
    sequential = statistics.sequential_interval(rows["lost"], rows["gained"], 719, level)
    np.testing.assert_allclose(early[["selected_low", "selected_high"]].T, 100 * np.stack(sequential))
    alone = statistics.selected_intervals(rows, 5)
    np.testing.assert_allclose(alone["selected_low"], rows["drop_low"], err_msg="all rows are there")
    assert statistics.selected_intervals(rows[:0], 465).empty
    with pytest.raises(ValueError, match="6 of 5"):
        statistics.selected_confidence(6, 5)


def test_the_most_important_of_a_study_without_any_effect():
    rng, single, first, missed = np.random.default_rng(8), 0, 0, []
    for _ in range(100):
        lost, gained, _ = rng.multinomial(2000, [0.01, 0.01, 0.98], size=465).T
        rows = statistics.selected_intervals(chosen_rows(lost, gained, 2000, 5), 465)
        single += rows["drop_low"].iloc[0] > 0
        outside = (rows["selected_low"] > 0) | (rows["selected_high"] < 0)
        first, missed = first + outside.iloc[0], [*missed, outside.mean()]
    assert single > 0.95 * 100, "the interval of a row by itself says that the first matters, and it does not"
    assert first < 0.15 * 100 and np.mean(missed) < 0.05


def test_chosen_rows_of_true_effects_are_covered_too():
    rng, missed, single = np.random.default_rng(9), [], []
    for _ in range(60):
        chances = np.stack([0.008 + rng.gamma(0.35, 0.006, 465), np.full(465, 0.008)])
        lost, gained = rng.poisson(2000 * chances)
        truth = 100 * (chances[0] - chances[1])
        rows = statistics.selected_intervals(chosen_rows(lost, gained, 2000, 10), 465)
        true = truth[rows.index]
        missed.append(((true < rows["selected_low"]) | (true > rows["selected_high"])).mean())
        single.append(((true < rows["drop_low"]) | (true > rows["drop_high"])).mean())
    assert np.mean(missed) < 0.05 < np.mean(single)


def test_drop_table_in_percentage_points():
    counts = pd.DataFrame(
        {
            "layer": list("abc"),
            "lost": [9, 0, 0],
            "gained": [3, 0, 0],
            "num_images": [100, 100, 0],
            "num_correct": [80, 80, 0],
        }
    )
    table = statistics.drop_table(counts)
    assert list(counts) == ["layer", "lost", "gained", "num_images", "num_correct"]
    assert table["drop"].tolist()[:2] == pytest.approx([6, 0])
    assert table["intact"].tolist()[:2] == [80, 80] and table["ablated"].tolist()[:2] == [74, 80]
    assert table.loc[1, "drop_high"] == pytest.approx(100 * Z**2 / (100 + Z**2))
    assert table.loc[0, "p_value"] == pytest.approx(stats.binomtest(3, 12).pvalue)
    assert table["q_value"].tolist()[:2] == pytest.approx([2 * table.loc[0, "p_value"], 1])
    assert table.loc[2, ["drop", "drop_low", "drop_high", "p_value", "q_value", "intact"]].isna().all()
    with pytest.raises(ValueError, match="intact"):
        statistics.drop_table(counts.assign(num_correct=[8, 80, 0]))


def test_a_hundred_thousand_ablations_are_quick():
    rng = np.random.default_rng(3)
    counts = pd.DataFrame(rng.integers(0, 300, (100_000, 2)), columns=["lost", "gained"]).assign(num_images=10_000)
    start = time.process_time()
    statistics.drop_table(counts)
    assert time.process_time() - start < 3


def test_sequential_bounds_are_where_the_purse_reaches_two_over_alpha():
    bets = np.geomspace(0.02, 0.9, 12)

    def purse(lost, gained, num_images, difference):
        stakes = bets / (1 - difference)
        one = (1 - stakes * (1 - difference)) ** lost * (1 - stakes * (-1 - difference)) ** gained
        return np.mean(one * (1 + stakes * difference) ** (num_images - lost - gained))

    for lost, gained, num_images in [(0, 0, 500), (7, 2, 400), (40, 10, 1000)]:
        low, high = (float(x) for x in statistics.sequential_interval(lost, gained, num_images))
        assert purse(lost, gained, num_images, high) == pytest.approx(40, rel=1e-5)
        assert purse(gained, lost, num_images, -low) == pytest.approx(40, rel=1e-5)
        expected = 2 / (purse(lost, gained, num_images, 0) + purse(gained, lost, num_images, 0))
        assert statistics.sequential_p_value(lost, gained) == pytest.approx(min(1, expected))


def test_sequential_interval_stays_valid_under_peeking():
    rng = np.random.default_rng(4)
    num_images = 200 * np.arange(1, 51)
    for chances in [(0.01, 0.01), (0.02, 0.005), (0.004, 0), (0.15, 0.1)]:
        shards = rng.multinomial(200, [*chances, 1 - sum(chances)], size=(500, 50))
        lost, gained, _ = np.moveaxis(shards.cumsum(axis=1), -1, 0)
        difference = chances[0] - chances[1]

        def ever_missed(low, high, difference=difference):
            return np.any((difference < low) | (difference > high), axis=1).mean()

        low, high = statistics.sequential_interval(lost, gained, num_images)
        _, fixed_low, fixed_high = statistics.paired_difference(lost, gained, num_images)
        assert ever_missed(low, high) <= 0.05
        assert ever_missed(fixed_low, fixed_high) > 0.15  # an interval for one look, looked at 50 times
        width = (high - low) / (fixed_high - fixed_low)
        assert width.min() > 1.2 and width.max() < 2
        if difference == 0:
            assert np.any(statistics.sequential_p_value(lost, gained) <= 0.05, axis=1).mean() <= 0.05


def test_sequential_edges():
    low, high = statistics.sequential_interval([0, 50, np.nan], [0, 0, 1], [0, 50, 50])
    assert np.isnan(low[[0, 2]]).all() and np.isnan(high[[0, 2]]).all() and high[1] == 1 and 0.7 < low[1] < 1
    assert statistics.sequential_p_value([0, 3], [0, 3]).tolist() == [1, 1]
    assert np.isnan(statistics.sequential_p_value(np.nan, 0))
    with pytest.raises(ValueError, match="exceed"):
        statistics.sequential_interval(5, 6, 10)
    with pytest.raises(ValueError, match="confidence"):
        statistics.sequential_interval(1, 0, 10, confidence=1)
