"""Comparisons, rankings, bootstrap and planning against independent implementations and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from weanalysis.errors import StudyError
from weanalysis.results import statistics


def sparse_changes(dense) -> sparse.csr_array:
    return sparse.csr_array(np.asarray(dense, dtype=np.int8))


def test_two_networks_are_paired_on_their_common_images():
    first = pd.Series([1, 1, 0, 1, 0, 1, 1], index=[3, 1, 4, 15, 9, 2, 6])
    second = pd.Series([0, 0, 1, 1, 1, 0], index=[1, 3, 9, 2, 5, 6])
    result = statistics.compare_correctness(first.index, first, second.index, second)
    # common: 1, 2, 3, 6, 9; the second gains 9, and loses 1, 3 and 6
    expected = statistics.paired_difference(1, 3, 5)
    assert result.difference == pytest.approx(-40), "second minus first"
    assert (result.num_images, result.num_left_out) == (5, 3)
    assert (result.difference, result.difference_low, result.difference_high) == pytest.approx(
        tuple(100 * float(x) for x in expected)
    )
    assert result.p_value == pytest.approx(stats.binomtest(1, 4).pvalue)
    swapped = statistics.compare_correctness(second.index, second, first.index, first)
    assert swapped.difference == -result.difference and swapped.difference_low == pytest.approx(-result.difference_high)


def test_results_without_a_common_image_are_refused():
    with pytest.raises(StudyError, match=r"no image in common \(2 and 3 images\)"):
        statistics.common_images([1, 2], [3, 4, 5])
    with pytest.raises(StudyError, match="twice"):
        statistics.common_images([1, 1], [1, 2])
    assert statistics.common_images([5, 2, 9], [9, 1, 5]).tolist() == [5, 9]


def test_change_matrix_puts_every_change_in_its_place():
    changes = pd.DataFrame(
        {
            "position": [7, 7, 2, 2, 99],
            "image_id": [10, 30, 10, 20, 10],
            "correct_before": [True, False, True, False, True],
            "correct_after": [False, True, False, False, False],  # image 20 went from one wrong class to another
        }
    )
    matrix = statistics.change_matrix(changes, images=[30, 20, 10], positions=[2, 7])
    assert matrix.toarray().tolist() == [[0, -1], [0, 0], [1, 1]] and matrix.nnz == 3
    with pytest.raises(ValueError, match="twice"):
        statistics.change_matrix(pd.concat([changes, changes]), [10, 20, 30], [2, 7])


def test_two_ablations_of_one_network_differ_by_tangos_interval():
    first = sparse_changes([[1], [1], [1], [0], [-1], [0], [0], [0]])
    second = sparse_changes([[1], [0], [0], [1], [0], [0], [0], [0]])
    row = statistics.compare_maps(first, second, same_network=True).iloc[0]
    expected = statistics.paired_difference(2, 2, 8)
    assert row[["first", "second"]].tolist() == [25, 25]
    assert row[["difference", "difference_low", "difference_high"]].tolist() == pytest.approx(
        [100 * float(x) for x in expected]
    )
    assert row["p_value"] == 1 and row["num_images"] == 8
    with pytest.raises(ValueError, match="disagree"):
        statistics.compare_maps(first, -first, same_network=True)
    with pytest.raises(ValueError, match="shapes"):
        statistics.compare_maps(first, sparse_changes([[1, 0]] * 8), same_network=True)


def test_sign_flip_p_value_by_trying_every_sign():
    rng = np.random.default_rng(5)
    first, second = (rng.choice([-1, 0, 0, 1], size=(11, 30)) for _ in range(2))
    first[:, 0] = second[:, 0]
    table = statistics.compare_maps(sparse_changes(first), sparse_changes(second), same_network=False)
    for place in range(30):
        apart = (first - second)[:, place]
        apart = apart[apart != 0]
        sums = [abs(apart @ signs) for signs in itertools.product([-1, 1], repeat=len(apart))]
        assert table.loc[place, "p_value"] == pytest.approx(np.mean(np.array(sums) >= abs(apart.sum())), abs=1e-12)
    np.testing.assert_allclose(table["difference"], 100 * (second - first).mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(table["q_value"], stats.false_discovery_control(table["p_value"]))


def test_maps_of_two_networks_combine_both_intervals():
    rng = np.random.default_rng(6)
    first, second = (rng.choice([-1, 0, 1], p=[0.05, 0.8, 0.15], size=(300, 8)) for _ in range(2))
    second[:150] = first[:150]
    table = statistics.compare_maps(sparse_changes(first), sparse_changes(second), same_network=False)
    for place in range(8):
        a, b = first[:, place], second[:, place]
        (da, la, ha), (db, lb, hb) = (
            statistics.paired_difference((x == 1).sum(), (x == -1).sum(), 300) for x in (a, b)
        )
        r = np.corrcoef(a, b)[0, 1]
        low = db - da - np.sqrt((db - lb) ** 2 + (ha - da) ** 2 - 2 * r * (db - lb) * (ha - da))
        high = db - da + np.sqrt((hb - db) ** 2 + (da - la) ** 2 - 2 * r * (hb - db) * (da - la))
        assert table.loc[place, "difference_low"] == pytest.approx(100 * low)
        assert table.loc[place, "difference_high"] == pytest.approx(100 * high)
    none = statistics.compare_maps(sparse_changes(np.zeros((50, 1))), sparse_changes(np.zeros((50, 1))), False).iloc[0]
    assert none["difference"] == 0 and none["p_value"] == 1 and none["difference_low"] < 0 < none["difference_high"]


@pytest.mark.parametrize("expected", [2, 8, 40])
def test_coverage_of_map_differences(expected):
    # Rows are images; each column is one simulated study. Half of the changed images change in both.
    rng, num_images, share = np.random.default_rng(7), 500, expected / 500
    kind = rng.choice(4, p=[1 - 2 * share, share, share / 2, share / 2], size=(num_images, 4000))
    first, second = np.isin(kind, [1, 2]), np.isin(kind, [1, 3]) * np.where(rng.random(kind.shape) < 0.9, 1, -1)
    table = statistics.compare_maps(sparse_changes(first), sparse_changes(second), same_network=False)
    truth = -100 * 1.5 * share * 0.2
    assert ((table["difference_low"] <= truth) & (truth <= table["difference_high"])).mean() >= 0.945


def test_layers_are_compared_image_by_image():
    rng = np.random.default_rng(8)
    first = rng.choice([-1, 0, 1], p=[0.02, 0.88, 0.1], size=(400, 6))
    second = rng.choice([-1, 0, 1], p=[0.02, 0.95, 0.03], size=(400, 9))
    result = statistics.compare_layers(sparse_changes(first), sparse_changes(second))
    test = stats.ttest_rel(second.mean(axis=1), first.mean(axis=1))
    interval = test.confidence_interval()
    assert result.difference == pytest.approx(100 * (second.mean() - first.mean()))
    assert (result.difference_low, result.difference_high) == pytest.approx((100 * interval.low, 100 * interval.high))
    assert result.p_value == pytest.approx(test.pvalue) and result.num_images == 400
    same = statistics.compare_layers(sparse_changes(first), sparse_changes(first))
    assert same.difference == 0 and same.p_value == 1 and same.difference_low < 0 < same.difference_high
    alike = statistics.compare_layers(sparse_changes(np.zeros((12, 3), int)), sparse_changes(np.ones((12, 9), int)))
    assert (
        alike.difference == pytest.approx(100)
        and np.isnan([alike.difference_low, alike.difference_high, alike.p_value]).all()
    )
    with pytest.raises(ValueError, match="paired"):
        statistics.compare_layers(sparse_changes(first), sparse_changes(second[:10]))


def test_runs_are_compared_by_welch():
    first, second = [97.1, 96.4, 97.9, 96.8], [95.0, 96.1, 94.2]
    estimate = statistics.compare_runs(first, second)
    means = CompareMeans(DescrStatsW(second), DescrStatsW(first))
    assert estimate.value == pytest.approx(np.mean(second) - np.mean(first))
    assert estimate[1:3] == pytest.approx(means.tconfint_diff(usevar="unequal"))
    assert estimate.p_value == pytest.approx(means.ttest_ind(usevar="unequal")[1])
    mean = statistics.mean_of_runs(first)
    assert mean[1:3] == pytest.approx(DescrStatsW(first).tconfint_mean())
    assert statistics.compare_runs([97.0], [95.0]).value == -2
    for lonely in (statistics.compare_runs([97.0], second), statistics.mean_of_runs([97.0])):
        assert np.isnan([lonely.low, lonely.high]).all()
    assert np.isnan(statistics.mean_of_runs([]).value) and np.isnan(statistics.compare_runs([], second).value)


def by_leaving_out(first, second, correlation, blocks) -> tuple[float, float]:
    """The interval by hand: each block left out, Student's t on Fisher's scale; wider than the formula here."""
    blocks = np.asarray(blocks)
    value, names = correlation(first, second).statistic, np.unique(blocks)
    left = np.array([correlation(first[blocks != name], second[blocks != name]).statistic for name in names])
    error = np.sqrt((len(names) - 1) / len(names) * np.sum((left - left.mean()) ** 2))
    reach = stats.t.ppf(0.975, len(names) - 1) * error / (1 - value**2)
    return np.tanh(np.arctanh(value) - reach), np.tanh(np.arctanh(value) + reach)


def test_rank_agreement_by_its_formulas():
    first = np.array([3, 1, 4, 1, 5, 9, 2, 6, np.nan, 7])
    second = np.array([2, 7, 1, 8, 2, 8, 1, 8, 2, np.nan])
    known = slice(0, 8)
    rho = np.corrcoef(stats.rankdata(first[known]), stats.rankdata(second[known]))[0, 1]
    estimate = statistics.rank_agreement(first, second)
    assert estimate.value == pytest.approx(rho)
    assert estimate[1:3] == pytest.approx(by_leaving_out(first[:8], second[:8], stats.spearmanr, range(8)))
    rng = np.random.default_rng(3)
    long, wide = rng.permutation(2000), rng.permutation(2000)  # too long for that, and hardly in need of it
    rho = stats.spearmanr(long, wide).statistic
    reach = 1.959964 * np.sqrt((1 + rho**2 / 2) / 1997)
    assert statistics.rank_agreement(long, wide).low == pytest.approx(np.tanh(np.arctanh(rho) - reach))
    pairs = [
        (np.sign(first[i] - first[j]), np.sign(second[i] - second[j])) for i, j in itertools.combinations(range(8), 2)
    ]
    x, y = np.array(pairs).T
    tau = statistics.rank_agreement(first, second, "kendall")
    assert tau.value == pytest.approx((x @ y) / np.sqrt((x @ x) * (y @ y)))
    assert tau[1:3] == pytest.approx(by_leaving_out(first[:8], second[:8], stats.kendalltau, range(8)))


@pytest.mark.parametrize("method", ["spearman", "kendall"])
def test_rank_agreement_edges_and_coverage(method):
    perfect = statistics.rank_agreement(range(10), range(10), method)
    assert (perfect.value, perfect.high) == pytest.approx((1, 1)) and perfect.low < 0.95
    opposite = statistics.rank_agreement(range(10), range(10, 0, -1), method)
    assert (opposite.value, opposite.low) == pytest.approx((-1, -1)) and opposite.high > -0.95
    for useless in (([1, 2, 3, 4], [1, 2, 3, 4]), ([1] * 9, range(9))):
        assert np.isnan(statistics.rank_agreement(*useless, method).value)
    with pytest.raises(ValueError, match="pearson"):
        statistics.rank_agreement(range(9), range(9), "pearson")
    rng, correlation = np.random.default_rng(11), 0.6
    truth = {"spearman": 6 / np.pi * np.arcsin(correlation / 2), "kendall": 2 / np.pi * np.arcsin(correlation)}[method]
    draws = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=(600, 60))
    estimates = [statistics.rank_agreement(*draw.T, method) for draw in draws]
    assert 0.92 <= np.mean([x.low <= truth <= x.high for x in estimates]) <= 0.98


def test_rank_intervals_hold_for_ten_pairs_that_nearly_agree():
    """The formulas alone: Kendall 73 %, Spearman 91 %."""
    rng, correlation = np.random.default_rng(20), 0.98
    draws = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=(500, 10))
    for method, truth in (
        ("spearman", 6 / np.pi * np.arcsin(correlation / 2)),
        ("kendall", 2 / np.pi * np.arcsin(correlation)),
    ):
        estimates = [statistics.rank_agreement(*draw.T, method) for draw in draws]
        assert np.mean([x.low <= truth <= x.high for x in estimates]) > 0.9, method


def layered(rng, num_layers=19, num_places=25, effect=1.0, within=0.0):
    """Two lists with layer effects of their own; inside a layer they have the correlation `within`."""
    layers = np.repeat(np.arange(num_layers), num_places)
    own = rng.multivariate_normal([0, 0], [[1, within], [within, 1]], size=len(layers))
    first, second = (own + effect * rng.normal(size=(num_layers, 2))[layers]).T
    return first, second, layers


@pytest.mark.parametrize("method", ["spearman", "kendall"])
def test_scores_unrelated_within_layers_are_found_in_five_of_a_hundred_networks(method):
    rng, plain, within, covered = np.random.default_rng(21), [], [], []
    for _ in range(100):
        first, second, layers = layered(rng, num_places=15)
        plain.append(statistics.rank_agreement(first, second, method).p_value <= 0.05)
        estimate = statistics.rank_agreement(first, second, method, blocks=layers)
        within.append(estimate.p_value <= 0.05)
        covered.append(estimate.low <= 0 <= estimate.high)
    assert np.mean(plain) > 0.2, "as independent places"
    assert np.mean(within) < 0.1 and np.mean(covered) > 0.9
    related = [
        statistics.rank_agreement(*layered(rng, within=0.4)[:2], method, blocks=np.repeat(np.arange(19), 25))
        for _ in range(20)
    ]
    assert all(one.p_value < 0.01 for one in related)


def test_p_values_within_layers_are_those_of_permutations():
    rng = np.random.default_rng(22)
    first, second, layers = layered(rng, 6, 10, within=0.2)
    first, second = np.round(first), np.round(2 * second)  # with ties
    places = [np.flatnonzero(layers == layer) for layer in range(6)]
    ranks = stats.rankdata(first), stats.rankdata(second)
    signs = [np.sign(np.subtract.outer(x, x)) * (layers[:, None] == layers) for x in (first, second)]
    tops = [(x > np.sort(x)[-13]).astype(float) for x in (np.arange(60) + 60 * first, np.arange(60) + 60 * second)]
    seen = []
    for round_ in range(3001):
        order = np.arange(60)
        if round_:
            order[np.concatenate(places)] = np.concatenate([rng.permutation(own) for own in places])
        moved = signs[1][np.ix_(order, order)]
        seen.append([ranks[0] @ ranks[1][order], np.sum(signs[0] * moved), tops[0] @ tops[1][order]])
    seen = np.array(seen)
    for column, method in ((0, "spearman"), (1, "kendall")):
        away = np.abs(seen[:, column] - seen[1:, column].mean())
        p_value = statistics.rank_agreement(first, second, method, blocks=layers).p_value
        assert p_value == pytest.approx(np.mean(away[1:] >= away[0] - 1e-9), abs=0.03)
    overlap = statistics.top_overlap(np.arange(60) + 60 * first, np.arange(60) + 60 * second, 12, layers)
    assert overlap.share == pytest.approx(seen[0, 2] / 12)
    assert overlap.p_value == pytest.approx(np.mean(seen[1:, 2] >= seen[0, 2]), abs=0.03)


def test_the_layers_are_the_sample_of_a_network():
    rng = np.random.default_rng(23)
    first, second, layers = layered(rng, 7, 12, within=0.5)
    for method, correlation in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        estimate = statistics.rank_agreement(first, second, method, blocks=layers)
        assert estimate[1:3] == pytest.approx(by_leaving_out(first, second, correlation, layers))
        assert estimate.value == statistics.rank_agreement(first, second, method).value
        two = statistics.rank_agreement(first, second, method, blocks=layers > 3)
        assert np.isnan([two.low, two.high]).all() and two.value == estimate.value, "two layers are no sample"
        one = statistics.rank_agreement(first, second, method, blocks=np.zeros(84))
        assert one == statistics.rank_agreement(first, second, method)
        # More pairs than are laid out at once, and more layers than are left out one by one.
        wide = layered(rng, 50, 30, within=0.5)
        # With few different values too, as D has them: places that are equal share a rank, which changes with a layer.
        for pair in (wide[:2], np.round(wide[:2]), (wide[0], np.round(wide[1]))):
            estimate = statistics.rank_agreement(*pair, method, blocks=wide[2])
            assert estimate[1:3] == pytest.approx(by_leaving_out(*pair, correlation, wide[2] // 2))
            whole = correlation(*pair)
            assert estimate.value == pytest.approx(whole.statistic)
            unlayered = statistics.rank_agreement(*pair, method)
            assert unlayered.p_value == pytest.approx(whole.pvalue, rel=1e-9)


@pytest.mark.parametrize("places", [30, 1200])
def test_pairs_within_layers_are_counted_one_by_one(places):
    """Hirsch's sum of the layers' S: of layers that are laid out pair by pair, and of such as are too large for it."""
    rng = np.random.default_rng(29)
    first, second = rng.integers(0, 40, (2, 2 * places)).astype(float)
    layers = np.repeat([0, 1], places)
    total, variance = 0, 0.0
    for layer in range(2):
        x, y = first[layers == layer], second[layers == layer]
        total += sum(np.sign(x[i] - x[:i]) @ np.sign(y[i] - y[:i]) for i in range(1, places))
        t, u = (np.unique(values, return_counts=True)[1].astype(float) for values in (x, y))
        n = places
        variance += (n * (n - 1) * (2 * n + 5) - sum((c * (c - 1) * (2 * c + 5)).sum() for c in (t, u))) / 18
        variance += (t * (t - 1)).sum() * (u * (u - 1)).sum() / (2 * n * (n - 1))
        variance += np.prod([(c * (c - 1) * (c - 2)).sum() for c in (t, u)]) / (9 * n * (n - 1) * (n - 2))
    expected = 2 * stats.norm.sf((abs(total) - 1) / np.sqrt(variance))
    estimate = statistics.rank_agreement(first, second, "kendall", blocks=layers)
    assert estimate.p_value == pytest.approx(expected, rel=1e-9)


def test_layers_in_full_agreement_have_a_p_value_of_0():
    for sign in (1, -1):
        estimate = statistics.rank_agreement(range(8), sign * np.arange(8), blocks=np.repeat([0, 1], 4))
        assert (estimate.value, estimate.p_value) == (pytest.approx(sign), pytest.approx(0, abs=1e-9))


def test_top_overlap_and_its_chance_level():
    rng = np.random.default_rng(12)
    first = np.arange(20.0)
    assert statistics.top_overlap(first, first, 5) == pytest.approx((1, 0.25, 1 / math.comb(20, 5)), rel=1e-9)
    assert statistics.top_overlap(first, -first, 5) == pytest.approx((0, 0.25, 1))
    shares = [statistics.top_overlap(first, rng.permutation(first), 5).share for _ in range(4000)]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.01)
    # A list without any order agrees with every other just as chance does, wherever its items stand.
    assert statistics.top_overlap(first, np.zeros(20), 5) == pytest.approx(
        (0.25, 0.25, stats.hypergeom.sf(0, 20, 5, 5))
    )
    assert statistics.top_overlap([1, 2, np.nan, 4], [1, 2, 3, 4], 1).chance == pytest.approx(1 / 3)
    for k in (0, 21):
        with pytest.raises(ValueError, match="between 1 and the 20"):
            statistics.top_overlap(first, first, k)


def draw_changes(drops, num_images, rng) -> sparse.csr_array:
    uniform = rng.random((num_images, 1))  # one draw an image: places share their noise
    own = rng.random((num_images, len(drops)))
    lost = np.where(rng.random((num_images, len(drops))) < 0.5, uniform, own) < 0.01 + np.maximum(drops, 0)
    return sparse_changes(lost.astype(np.int8) - (own > 0.99))


def test_spread_is_free_of_sampling_noise():
    rng = np.random.default_rng(13)
    results = []
    for _ in range(150):
        drops = rng.exponential(0.01, 25)
        results.append(statistics.spread_of_drop(draw_changes(drops, 400, rng), rng, num_resamples=300))
    value, low, high, _ = np.transpose(results)
    assert np.mean(value**2) == pytest.approx(1, rel=0.15)  # the raw variance would be 1.5 times as large
    given = np.isfinite(low)
    assert given.mean() > 0.7
    assert np.mean((low <= 1) & (high >= 1), where=given) > 0.87
    assert np.all((low <= value + 1e-12) & (value <= high + 1e-12), where=given)
    equal = [statistics.spread_of_drop(draw_changes(np.full(25, 0.02), 400, rng), rng).value for _ in range(60)]
    raw = [100 * draw_changes(np.full(25, 0.02), 400, rng).mean(axis=0).std(ddof=1) for _ in range(60)]
    assert np.mean(np.square(equal)) < 0.15 * np.mean(np.square(raw))


def test_a_spread_that_hangs_on_single_places_has_no_interval():
    """The bootstrap-t explodes there: 1.10 [0.00, 32451166604] stood in a report."""
    rng, num_images = np.random.default_rng(3), 250
    for drops in (
        [11, 1, 1, 1, 1, 0, 0, -1, -1, -1, 0, 0, 0, 0, 0],
        [6, 2, 1, 1, 1, -1, -1, *[0] * 18],
        [1, 1, *[0] * 23],
    ):
        lost = [rng.permutation(np.arange(num_images) < abs(drop)) * np.sign(drop) for drop in drops]
        estimate = statistics.spread_of_drop(sparse_changes(np.transpose(lost)), rng)
        assert estimate.value >= 0 and np.isnan([estimate.low, estimate.high]).all(), drops
    for _ in range(100):
        drops = rng.exponential(0.01, 25) ** 2 * 100
        value, low, high, _ = statistics.spread_of_drop(draw_changes(drops, 400, rng), rng, num_resamples=200)
        assert np.isnan(high) or (0 < high < 20 * max(value, 0.5) and low <= value <= high)


def layers_of_a_study(rng, spread, num_images=700):
    """Nineteen layers of 25 places, whose flips become rare with depth, and whose true D have the spreads given."""
    layers = []
    for depth in range(19):
        lost = 0.01 * np.exp(-depth / 5) + 0.0004
        drops = spread(depth) * rng.normal(size=25)
        chances = rng.random((num_images, 25))
        lose, gain = lost + np.maximum(drops, 0), lost + np.maximum(-drops, 0)
        layers.append(sparse_changes(np.where(chances < lose, 1, np.where(chances < lose + gain, -1, 0))))
    return layers


def test_layers_that_vary_alike_are_not_said_to_vary_more_early():
    """With the rank correlation of depth with the spread, noise taken off, "early" came out in 6 to 11 %."""
    rng = np.random.default_rng(24)
    for same in (0.0, 0.003):
        trends = [statistics.trend_of_spread(layers_of_a_study(rng, lambda depth, same=same: same)) for _ in range(80)]
        for sign in (-1, 1):
            assert sum(one.p_value <= 0.05 and sign * one.value > 0 for one in trends) <= 6, "2.5 % of 80 are 2"
    falling = [
        statistics.trend_of_spread(layers_of_a_study(rng, lambda depth: 0.02 * np.exp(-depth / 5))) for _ in range(20)
    ]
    assert sum(one.p_value <= 0.05 and one.value < 0 for one in falling) >= 18


def test_the_trend_of_few_or_silent_layers_is_missing():
    rng = np.random.default_rng(25)
    layers = layers_of_a_study(rng, lambda depth: 0.01)
    assert np.isnan(statistics.trend_of_spread(layers[:4]).value)
    silent = [sparse_changes(np.zeros((50, 9)))] * 8
    assert np.isnan(statistics.trend_of_spread(silent).value)
    mixed = statistics.trend_of_spread([*layers[:6], *silent[:3]])
    assert 0 <= mixed.p_value <= 1
    variances = [layer.toarray().mean(axis=0).var(ddof=1) for layer in layers]
    trend = statistics.trend_of_spread(layers)
    assert trend.value == pytest.approx(stats.spearmanr(range(19), variances).statistic, abs=0.2)


def test_spread_by_hand():
    dense = np.array([[1, 0, 0], [1, 1, 0], [0, -1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0]])
    drop = dense.mean(axis=0)
    noise = np.mean([np.var(row - drop, ddof=1) for row in dense]) / 7
    estimate = statistics.spread_of_drop(sparse_changes(dense), np.random.default_rng(0), num_resamples=50)
    assert estimate.value == pytest.approx(100 * np.sqrt(np.var(drop, ddof=1) - noise))
    unchanged = statistics.spread_of_drop(sparse_changes(np.zeros((8, 4))), np.random.default_rng(0))
    assert unchanged.value == 0 and np.isnan([unchanged.low, unchanged.high]).all()
    assert np.isnan(statistics.spread_of_drop(sparse_changes(dense[:, :2]), np.random.default_rng(0)).value)


def test_a_spread_of_few_places_has_two_bounds_or_none():
    rng = np.random.default_rng(2)
    estimates = [statistics.spread_of_drop(sparse_changes(rng.random((50, 4)) < 0.03), rng, 300) for _ in range(60)]
    bounds = np.array([[one.low, one.high] for one in estimates])
    assert np.array_equal(np.isnan(bounds[:, 0]), np.isnan(bounds[:, 1])) and not np.isinf(bounds).any()
    assert 0 < np.isnan(bounds[:, 0]).sum() < 60, "resamples of four places often say nothing of how far it may reach"


def connors(difference: float, discordance: float) -> int:
    """The normal approximation by hand, for a power of 0.8 at 5 %."""
    noise = 1.959964 * np.sqrt(discordance) + 0.841621 * np.sqrt(discordance - difference**2)
    return int(np.ceil((noise / difference) ** 2))


def test_images_needed_have_the_power_of_the_exact_test():
    rng = np.random.default_rng(26)
    for difference, discordance in [(0.01, 0.03), (-0.005, 0.04), (0.02, 0.2), (0.01, 0.015), (0.005, 0)]:
        num_images = int(statistics.images_needed(difference, discordance))
        share = max(abs(difference), discordance)
        power = [statistics.mcnemar_power(abs(difference), share, num_images - less) for less in (0, 1)]
        assert power[0] >= 0.8 > power[1]
        assert 0.75 < statistics.mcnemar_power(abs(difference), share, connors(difference, share)) < 0.8
        lost, gained = (share + difference) / 2, (share - difference) / 2
        counts = rng.multinomial(num_images, [lost, gained, 1 - lost - gained], size=20_000).T
        simulated = np.mean(statistics.mcnemar_exact(*counts[:2]) <= 0.05)
        assert simulated == pytest.approx(power[0], abs=0.012)
    assert statistics.images_needed(1, 1) == 6, "six images all lost"
    # Where the formula stands, it is as good.
    assert statistics.images_needed(0.0002, 0.025) == pytest.approx(connors(0.0002, 0.025), rel=1e-6)
    assert statistics.mcnemar_power(0.0002, 0.025, connors(0.0002, 0.025)) == pytest.approx(0.8, abs=0.001)
    np.testing.assert_array_equal(
        statistics.images_needed([0, np.nan, 0.02, -0.02], [0.1, 0.1, 0, 0.02]),
        [np.nan, np.nan, *[statistics.images_needed(0.02, 0.02)] * 2],
    )
    with pytest.raises(ValueError, match="fractions"):
        statistics.images_needed(1.5, 0.2)


def test_the_detectable_difference_has_the_power_of_the_exact_test():
    for discordance, num_images, significance in [
        (0.03, 2353, 0.05),
        (0.1, 500, 0.05),
        (0.4, 10_000, 0.05),
        (0.0, 1000, 0.05),
        (0.03, 2353, 0.05 / 465),
    ]:
        detectable = statistics.detectable_difference(discordance, num_images, significance=significance)

        def power(difference: float, case=(discordance, num_images, significance)) -> float:
            return statistics.mcnemar_power(difference, max(difference, case[0]), *case[1:])

        assert power(detectable) >= 0.8 > power(0.999 * detectable)
    assert statistics.detectable_difference(0.1, 500, significance=0.001) > statistics.detectable_difference(0.1, 500)
    assert np.isnan(statistics.detectable_difference(0.1, 0)) and np.isnan(statistics.detectable_difference(0.5, 2))
    assert np.isnan(statistics.detectable_difference(np.nan, 500))


def test_the_smallest_finding_is_the_shortest_run_of_losses_that_a_coin_does_not_give():
    for significance in (0.05, 0.05 / 465, 1e-6):
        fewest = next(k for k in range(1, 60) if 2 * 0.5**k <= significance)
        assert statistics.smallest_finding(1000, significance) == fewest / 1000
        later = statistics.smallest_finding(1000, significance, stopped=True)
        lost = round(later * 1000)
        assert statistics.sequential_p_value(lost, 0) <= significance < statistics.sequential_p_value(lost - 1, 0)
    assert np.isnan([statistics.smallest_finding(5), statistics.smallest_finding(0)]).all()
    assert statistics.smallest_finding(6) == 1


def test_exact_power_by_simulation():
    rng = np.random.default_rng(14)
    lost, gained, _ = rng.multinomial(600, [0.03, 0.01, 0.96], size=20_000).T
    simulated = np.mean(statistics.mcnemar_exact(lost, gained) <= 0.05)
    assert statistics.mcnemar_power(0.02, 0.04, 600) == pytest.approx(simulated, abs=0.012)
    assert statistics.mcnemar_power(0, 0.04, 600) < 0.05 and statistics.mcnemar_power(0, 0, 600) == 0
    with pytest.raises(ValueError, match="must hold"):
        statistics.mcnemar_power(0.05, 0.04, 600)


def half(rng, chances, num_images=2000):
    counts = np.array([rng.multinomial(num_images, [*pair, 1 - sum(pair)]) for pair in chances])
    return pd.DataFrame(counts[:, :2], columns=["lost", "gained"]).assign(num_images=num_images)


def test_improvements_are_confirmed_on_the_other_half():
    rng = np.random.default_rng(15)
    chances = [(0.002, 0.02)] * 3 + [(0.01, 0.01)] * 300
    result = statistics.confirm_improvements(half(rng, chances), half(rng, chances))
    assert result.table["confirmed"].tolist() == [True] * 3 + [False] * 300
    assert 3 < result.num_chosen < 40 and result.num_confirmed == 3
    table = result.table
    assert table["p_value"].notna().sum() == result.num_chosen
    np.testing.assert_allclose(
        table.loc[table["chosen"], "q_value"], stats.false_discovery_control(table.loc[table["chosen"], "p_value"])
    )
    assert table.loc[0, "drop"] == pytest.approx(-1.8, abs=0.8) and table.loc[0, "drop_high"] < 0


def test_when_nothing_improves_the_answer_says_what_could_be_missed():
    rng, wrong, missed = np.random.default_rng(16), 0, []
    none = [(0.01, 0.01)] * 100
    chances = [*none, (0.01, 0.014)]
    for _ in range(80):
        wrong += statistics.confirm_improvements(half(rng, none), half(rng, none)).num_confirmed > 0
        missed.append(statistics.confirm_improvements(half(rng, chances), half(rng, chances)).largest_missed)
    assert wrong <= 0.1 * 80
    assert np.mean(np.array(missed) >= 0.4) >= 0.95  # the true improvement of the last one, in points
    assert np.median(missed) < 1.5
    for num, z in ((1, 1.644854), (2, 1.959964)):  # one-sided, at 5 % shared among all ablations
        unchanged = pd.DataFrame({"lost": [0] * num, "gained": [0] * num, "num_images": [1000] * num})
        bound = statistics.confirm_improvements(unchanged, unchanged).largest_missed
        assert bound == pytest.approx(100 * z**2 / (2000 + z**2), rel=1e-5)


def test_halves_must_belong_together():
    good = pd.DataFrame({"lost": [1], "gained": [2], "num_images": [10]})
    with pytest.raises(StudyError, match="same ablations"):
        statistics.confirm_improvements(good, pd.concat([good, good]))
    with pytest.raises(StudyError, match="need images"):
        statistics.confirm_improvements(good, good * 0)
