"""What is chosen and bounded in a screened study, from numbers alone: the laws of errors, units, the choice, bounds."""

import numpy as np
import pytest
from scipy import stats

from weanalysis.ablation.evaluate.risk import (
    ErrorLaw,
    ErrorLaws,
    bands,
    choose,
    factors,
    in_units_of_others,
    likeliest,
    pilot,
    risks,
    units,
    units_in_turn,
)
from weanalysis.results.statistics import screen_bounds


def test_the_law_of_errors_follows_a_power_law_beyond_what_was_seen():
    rng = np.random.default_rng(0)
    sample = 0.1 * rng.pareto(3.0, 4000) * rng.choice([-1, 1], 4000)
    law = ErrorLaw.fit(sample)
    beyond = np.array([0.5, 1.0, 2.0])
    true = 0.5 * (1 + beyond / 0.1) ** -3.0
    # Near the edge the power is still smaller than far out, so that the tail is rather taken as too heavy.
    assert np.all(law.exceeds(beyond) > true) and np.all(law.exceeds(beyond) < 6 * true)
    inside = np.array([0.01, 0.05, 0.1])
    assert law.exceeds(inside) == pytest.approx(0.5 * (1 + inside / 0.1) ** -3.0, abs=0.03)
    grid = np.linspace(0, 10, 500)
    assert np.all(np.diff(law.exceeds(grid)) <= 1e-12) and law.exceeds(np.array([np.inf])) == 0


def test_a_law_of_hardly_any_sample_is_careful():
    for sample in ([], [0.0], [-1.0, -2.0, -0.5], np.zeros(100)):
        law = ErrorLaw.fit(np.array(sample))
        assert 0 < law.exceeds(np.array([2.0]))[0] <= 0.5 and np.isfinite(law.exponent)


def test_errors_that_mostly_go_the_other_way_have_a_tail_all_the_same():
    """The largest 5 % begin next to 0, from where a power law would fall at once."""
    rng = np.random.default_rng(0)
    for share in (0.06, 0.15):
        sample = np.where(rng.random(3000) < share, 1, -1) * rng.pareto(3.0, 3000)
        law = ErrorLaw.fit(sample)
        beyond = np.array([0.3, 1.0, 3.0])
        true = share * (1 + beyond) ** -3.0
        assert np.all(law.exceeds(beyond) > 0.5 * true) and np.all(law.exceeds(beyond) < 6 * true)


def test_margins_predicted_to_be_positive_have_a_law_of_their_own():
    rng = np.random.default_rng(0)
    positive = rng.random(20_000) < 0.3
    errors = 0.1 * rng.standard_t(4, 20_000) * np.where(positive, 5, 1)
    laws, risk = ErrorLaws.fit(errors, positive), np.array([[0.1, 0.1], [0.3, 0.3], [np.inf, np.inf]])
    side = np.array([[True, False]] * 3)
    chance = laws.exceeds(risk, side)
    assert chance[:2] == pytest.approx(stats.t.sf(10 * risk[:2] / [5, 1], 4), rel=0.3)
    assert (chance[2] == 0).all()


def test_octaves_of_risk_in_which_more_flips_than_the_law_says_count_for_more():
    risk = np.array([[0.1, 0.3, 3.0, 9.0, np.inf]])
    of_pair = bands(risk, risk > 0)
    assert of_pair.tolist() == [[7, 8, 11, 13, 13]] and bands(risk, risk < 0).tolist() == [[0, 1, 4, 6, 6]]
    found = factors(np.repeat([True, False], [8, 12]), np.full(20, 0.1), np.repeat([11, 3], [10, 10]))
    assert found[11] == pytest.approx((8 + 2) / (1 + 2)) and found[3] == pytest.approx(2 / 3)
    assert (np.delete(found, [3, 11]) == 1).all()


def test_a_group_has_its_own_unit_of_errors_as_far_as_there_are_any_of_it():
    rng = np.random.default_rng(0)
    everywhere = 0.2 * rng.standard_t(4, 20_000)
    sizes = {1: (5000, 0.5), 2: (5000, 0.0), 3: (5000, 100.0), 4: (5, 0.5)}  # of group 0 and 5 there is none
    errors = np.concatenate([everywhere, *(scale * everywhere[:count] for count, scale in sizes.values())])
    groups = np.concatenate([np.full(20_000, 6), *(np.full(count, group) for group, (count, _) in sizes.items())])
    mixed = rng.permutation(len(errors))
    found = units(errors[mixed], groups[mixed], 7)
    ratio = {group: np.quantile(np.abs(errors[groups == group]), 0.8) / np.quantile(np.abs(errors), 0.8)
             for group in (*sizes, 6)}  # fmt: skip
    assert found[0] == found[5] == 1
    for group in (1, 6):
        assert found[group] == pytest.approx(ratio[group], rel=0.01)
    assert found[2] == pytest.approx(1 / 3, abs=0.01) and found[3] == pytest.approx(3, abs=0.02)
    assert found[4] == pytest.approx(ratio[4] ** (5 / 13), rel=1e-6), "few errors of its own say little"
    assert units(np.zeros(9), np.arange(9), 9).tolist() == [1] * 9 and units(np.empty(0), np.empty(0, int), 2).all()


def test_errors_are_measured_in_units_that_other_errors_gave():
    """Groups that differ by chance alone: in their own units the errors look smaller than those to come."""
    rng = np.random.default_rng(0)
    groups = ((np.arange(60_000) // 6, 10_000),)
    errors, later = 0.2 * rng.standard_t(3, (2, 60_000))
    own = units_in_turn(errors, groups)[0][groups[0][0]]
    crossed = in_units_of_others(errors, groups, rng.integers(10, size=60_000))
    tail = [np.quantile(np.abs(found), 0.99) for found in (errors / own, crossed, later / own)]
    assert tail[0] < 0.92 * tail[2] and tail[1] == pytest.approx(tail[2], rel=0.05)
    # An error alone in its group has no other that would tell its unit.
    alone = ((np.arange(9), 9),)
    assert np.array_equal(in_units_of_others(errors[:9], alone, np.arange(9)), errors[:9])


def test_predicted_flips_are_always_computed_and_untouched_pairs_never():
    margins = np.array([1.0, -1.0, 2.0])
    change = np.array([[-1.5, 0.0], [0.2, 0.0], [-0.1, 0.0]])
    size = np.array([[1.5, 0.0], [0.2, 0.0], [0.1, 0.0]])
    risk, flipped = risks(margins, change, size)
    assert flipped.tolist() == [[True, False], [False, False], [False, False]]
    assert risk[:, 0] == pytest.approx([0.0, 4.0, 19.0]) and np.isinf(risk[:, 1]).all()
    chosen = pilot(risk, np.random.default_rng(0))
    assert chosen[:, 0].all() and not chosen[:, 1].any()
    many = np.random.default_rng(1).gamma(1.0, 8.0, (400, 500))
    many[:2] = 0  # predicted flips come on top of the share
    chosen = pilot(many, np.random.default_rng(0))
    rest = many[2:]
    assert chosen[:2].all() and chosen[2:][rest <= np.quantile(rest, 0.0025)].all()
    assert 0.0025 < chosen[2:].mean() < 0.0045
    assert all(chosen[(many >= low) & (many < 2 * low)].sum() >= 20 for low in (0.25, 0.5, 1, 2, 4))
    assert chosen[many > 16].sum() >= 20
    few = np.random.default_rng(1).gamma(1.0, 8.0, (40, 10))
    assert pilot(few, np.random.default_rng(0))[few <= np.quantile(few, 0.5)].all(), "200 at least"


def test_the_likeliest_of_those_asked_for_are_computed_first():
    chance = np.array([[0.9, 0.5, 0.1], [0.8, 0.2, 0.7]])
    among = np.array([[False, True, True], [True, True, True]])
    assert likeliest(chance, among, 2).tolist() == [[False, False, False], [True, False, True]]
    assert np.array_equal(likeliest(chance, among, 9), among)


def test_as_much_is_computed_as_the_wanted_error_asks_for():
    rng = np.random.default_rng(1)
    law = ErrorLaw.fit(0.2 * rng.standard_t(4, 5000))
    risk = rng.gamma(1.0, 4.0, (250, 40))
    risk[:, :3] /= 8  # three ablations that touch many decisions
    chance = law.exceeds(risk)
    for wanted in (0.1, 1.0):
        chosen = choose(chance, wanted)
        left = np.where(chosen, 0, chance).sum(0)
        assert left.mean() <= wanted / 100 * 250 / 20 + 1e-9 and left.max() <= wanted / 100 * 250 / 6 + 1e-9
        for one, of_one in zip(risk.T, chosen.T, strict=True):
            assert one[~of_one].min(initial=np.inf) >= one[of_one].max(initial=0)
    assert choose(3 * chance, 0.1).sum() > choose(chance, 0.1).sum()


def test_bounds_cover_ablations_that_hide_a_flip_in_a_simulation():
    """Counts drawn as the model says, and with four times its spread: at least 95 % and 90 % of the inexact ones."""
    rng = np.random.default_rng(2)
    for shape, least in ((3.0, 0.95), (0.75, 0.90)):
        inside = []
        for _ in range(30):
            rate = rng.gamma(shape, 1 / shape, 400)
            expected, up, down = (rng.gamma(1.0, mean, 400) for mean in (4.0, 0.3, 0.2))
            missed, lost, gained = (rng.poisson(rate * mean) for mean in (expected, up, down))
            low, high = screen_bounds(np.full(400, 20), np.full(400, 10), 1000, up, down, missed, expected)
            true, hidden = (10 + lost - gained) / 1000, lost != gained
            inside += list(((low <= true + 1e-12) & (true <= high + 1e-12))[hidden])
        assert len(inside) > 2000 and np.mean(inside) >= least


def test_bounds_are_the_difference_itself_where_nothing_can_be_hidden():
    low, high = screen_bounds([3, 0], [1, 0], [100, 0], [0, 0], [0, 0], [0, 0], [0, 0])
    assert low[0] == high[0] == pytest.approx(0.02) and np.isnan(low[1]) and np.isnan(high[1])
    low, high = screen_bounds([3], [1], [100], [1e-3], [0], [0], [0])
    assert low[0] == pytest.approx(0.02) and high[0] == pytest.approx(0.03)  # one image at least
    quantile = stats.nbinom.ppf(0.95, 20, 20 / 22)
    _, high = screen_bounds([0], [0], [100], [2.0], [0], [0], [0])
    assert high[0] >= quantile / 100


@pytest.mark.parametrize("mean", [1e-30, 1e-15, 1e-9, 1e-6, 1e-3, 1.0])
def test_bounds_stay_finite_however_little_can_be_hidden(mean):
    low, high = screen_bounds([3, 0], [1, 0], [1000, 1000], [mean, mean], [mean, 0], [0, 2], [0.5, 1.0])
    assert np.all(low > -0.02) and np.all(high < 0.02) and high[0] >= 0.003 and low[1] == 0


def test_a_prediction_that_is_no_number_is_computed():
    risk, _ = risks(np.array([1.0, 1.0]), np.array([[np.inf], [np.nan]]), np.array([[np.inf], [1.0]]))
    assert (risk == 0).all()
