"""What is chosen and bounded in a screened study, from numbers alone: the laws of errors, units, the choice, bounds."""

import numpy as np
import pytest
from scipy import stats

from weanalysis.ablation.evaluate import lot
from weanalysis.ablation.evaluate.risk import (
    LEAST_PILOT,
    PILOT_SHARE,
    ErrorLaw,
    ErrorLaws,
    bands,
    choose,
    factors,
    in_units_of_others,
    likeliest,
    pilot,
    risks,
    risks_of_others,
    units,
    units_in_turn,
)
from weanalysis.results.statistics import (
    hidden_flips,
    mcnemar_exact,
    mcnemar_of_screened,
    most_by_lot,
    screen_bounds,
)
from weanalysis.results.statistics.screening import Hidden


def hidden(may_lose, may_gain, num_missed, num_expected, layers=None, **of_lot) -> Hidden:
    """What may be hidden, with a lot that drew nothing unless one is given."""
    given = {"may_lose": may_lose, "may_gain": may_gain, "num_missed": num_missed, "num_expected": num_expected}
    zero = np.zeros(len(np.asarray(may_lose)))
    names = ("num_left", "lot_drawn", "lot_lost", "lot_gained", "lot_expected")
    return hidden_flips({**dict.fromkeys(names, zero), **given, **of_lot}, zero if layers is None else layers)


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
    corrections = factors(np.repeat([True, False], [8, 12]), np.full(20, 0.1), np.repeat([11, 3], [10, 10]))
    assert corrections[11] == pytest.approx((8 + 2) / (1 + 2)) and corrections[3] == pytest.approx(2 / 3)
    assert (np.delete(corrections, [3, 11]) == 1).all()


def test_a_group_has_its_own_unit_of_errors_as_far_as_there_are_any_of_it():
    rng = np.random.default_rng(0)
    everywhere = 0.2 * rng.standard_t(4, 20_000)
    # Groups with many errors, half as large, none, a hundred times as large; and with few and a dozen of the last kind.
    sizes = {1: (5000, 0.5), 2: (5000, 0.0), 3: (5000, 100.0), 4: (2, 100.0), 5: (12, 1e4)}
    errors = np.concatenate([everywhere, *(scale * everywhere[:count] for count, scale in sizes.values())])
    groups = np.concatenate([np.full(20_000, 0), *(np.full(count, group) for group, (count, _) in sizes.items())])
    mixed = rng.permutation(len(errors))
    of_groups = units(errors[mixed], groups[mixed], 7)
    assert of_groups[6] == 1, "nothing is known of it"
    assert of_groups[1] / of_groups[0] == pytest.approx(0.5, rel=0.05) and of_groups[3] / of_groups[0] == pytest.approx(
        100, rel=0.05
    )
    assert of_groups[2] == pytest.approx(1 / 3), "where most predictions are exact, those that are not count"
    assert of_groups[4] < 15 * of_groups[0], "few errors of its own say little"
    assert of_groups[5] > 1000 * of_groups[0], "a dozen errors that are ten thousand times as large say all"
    assert units(np.zeros(9), np.arange(9), 9).tolist() == [1] * 9 and units(np.empty(0), np.empty(0, int), 2).all()


def test_errors_are_measured_in_units_that_other_errors_gave():
    """Groups that differ by chance alone: in their own units the errors look smaller than those to come."""
    rng = np.random.default_rng(0)
    groups = ((np.arange(60_000) // 6, 10_000),)
    errors, later = 0.2 * rng.standard_t(3, (2, 60_000))
    own = units_in_turn(errors, groups)[0][groups[0][0]]
    crossed = in_units_of_others(errors, groups, rng.integers(10, size=60_000))
    tail = [np.quantile(np.abs(numbers), 0.99) for numbers in (errors / own, crossed, later / own)]
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
    chosen = pilot(risk, np.zeros(2, int), np.random.default_rng(0))
    assert chosen[:, 0].all() and not chosen[:, 1].any()
    many = np.random.default_rng(1).gamma(1.0, 8.0, (400, 500))
    many[:2] = 0  # predicted flips come on top of the share
    chosen = pilot(many, np.arange(500) // 25, np.random.default_rng(0))
    rest = many[2:]
    assert chosen[:2].all() and chosen[2:][rest <= np.quantile(rest, PILOT_SHARE)].all()
    assert PILOT_SHARE < chosen[2:].mean() < PILOT_SHARE + 0.002
    assert all(chosen[(many >= low) & (many < 2 * low)].sum() >= 10 for low in (0.25, 0.5, 1, 2, 4))
    assert chosen[many > 16].sum() >= 10
    far = np.where(many > 4, chosen, False).reshape(400, 20, 25)
    assert (far.sum((0, 2)) >= 2).all(), "some of each layer by lot"
    few = np.random.default_rng(1).gamma(1.0, 8.0, (40, 10))
    chosen = pilot(few, np.zeros(10, int), np.random.default_rng(0))
    assert chosen[few <= np.quantile(few, LEAST_PILOT / few.size)].all(), "so many at least"


def test_the_likeliest_of_those_asked_for_are_computed_first():
    chance = np.array([[0.9, 0.5, 0.1], [0.8, 0.2, 0.7]])
    among = np.array([[False, True, True], [True, True, True]])
    assert likeliest(chance, among, 2).tolist() == [[False, False, False], [True, False, True]]
    assert np.array_equal(likeliest(chance, among, 9), among)


def test_a_third_class_is_expected_to_go_half_as_far_as_the_rival():
    second, size = np.array([4.0, np.inf, -1.0, 2.0]), np.array([[1.0, 2.0]] * 3 + [[1.0, np.inf]])
    change = np.array([[-2.0, 2.0], [-9.0, 9.0], [-1.0, 4.0], [np.nan, 1.0]])
    after, risk = risks_of_others(second, change, size)
    assert after[:3].tolist() == [[3, 5], [np.inf, np.inf], [-1.5, 1]]
    assert risk.tolist() == [[3, 2.5], [np.inf, np.inf], [1.5, 0], [0, 0]], "what crosses 0, or is unknown, is computed"
    still = risks_of_others(second, change, 0 * np.ones_like(size))[1]
    assert np.isinf(still).all(), "where nothing changes nothing can cross"


def test_as_much_is_computed_as_the_wanted_error_asks_for():
    rng = np.random.default_rng(1)
    law = ErrorLaw.fit(0.2 * rng.standard_t(4, 5000))
    risk = rng.gamma(1.0, 4.0, (250, 40))
    risk[:, :3] /= 8  # three ablations that touch many decisions
    chance = law.exceeds(risk)
    for wanted in (0.1, 1.0):
        chosen = choose(chance, wanted)
        left = np.where(chosen, 0, chance).sum(0)
        assert left.mean() <= wanted / 100 * 250 / 4 + 1e-9 and left.max() <= wanted / 100 * 250 + 1e-9
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
            low, high = screen_bounds(np.full(400, 20), np.full(400, 10), 1000, hidden(up, down, missed, expected))
            true, hides = (10 + lost - gained) / 1000, lost != gained
            inside += list(((low <= true + 1e-12) & (true <= high + 1e-12))[hides])
        assert len(inside) > 2000 and np.mean(inside) >= least


def test_bounds_hold_where_more_is_hidden_beyond_what_was_computed_than_that_tells():
    """What was computed is as the law says; what is hidden is e times as often or as seldom, all of an ablation's."""
    rng = np.random.default_rng(6)
    may_lose, rate = np.full(4000, 1.5), rng.lognormal(-0.5, 1.0, 4000)
    missed, lost = rng.poisson(30.0, 4000), rng.poisson(rate * may_lose)
    low, high = screen_bounds(
        np.full(4000, 40), np.full(4000, 10), 1000, hidden(may_lose, 0 * may_lose, missed, np.full(4000, 30.0))
    )
    inside = ((low <= (30 + lost) / 1000 + 1e-12) & ((30 + lost) / 1000 <= high + 1e-12))[lost > 0]
    assert len(inside) > 2000 and inside.mean() >= 0.95


def test_bounds_are_the_difference_itself_where_nothing_can_be_hidden():
    low, high = screen_bounds([3, 0], [1, 0], [100, 0], hidden([0, 0], [0, 0], [0, 0], [0, 0]))
    assert low[0] == high[0] == pytest.approx(0.02) and np.isnan(low[1]) and np.isnan(high[1])
    low, high = screen_bounds([3], [1], [100], hidden([1e-3], [0], [0], [0]))
    assert low[0] == pytest.approx(0.02) and high[0] == pytest.approx(0.03)  # one image at least
    quantile = stats.nbinom.ppf(0.95, 20, 20 / 22)
    _, high = screen_bounds([0], [0], [100], hidden([2.0], [0], [0], [0]))
    assert high[0] >= quantile / 100


@pytest.mark.parametrize("mean", [1e-30, 1e-15, 1e-9, 1e-6, 1e-3, 1.0])
def test_bounds_stay_finite_however_little_can_be_hidden(mean):
    low, high = screen_bounds([3, 0], [1, 0], 1000, hidden([mean, mean], [mean, 0], [0, 2], [0.5, 1.0]))
    assert np.all(low > -0.02) and np.all(high < 0.02) and high[0] >= 0.003 and low[1] == 0


def test_a_prediction_that_is_no_number_is_computed():
    risk, _ = risks(np.array([1.0, 1.0]), np.array([[np.inf], [np.nan]]), np.array([[np.inf], [1.0]]))
    assert (risk == 0).all()


# ---- the lot


def test_a_lot_takes_its_share_of_each_layer_and_of_each_ablation_and_every_pair_as_often():
    rng = np.random.default_rng(0)
    layers = np.repeat([0, 1, 2], [30, 9, 1])
    left = rng.random((50, 40)) < 0.8
    left[:, 39] = False
    left[:2, 39] = True
    times = np.zeros(left.shape)
    for _ in range(2000):
        drawn = lot.draw(left, layers, 60, rng)
        assert [drawn[:, layers == one].sum() for one in (0, 1, 2)] == [60, 60, 2] and not (drawn & ~left).any()
        assert drawn[:, :30].sum(0).min() >= 1, "each ablation has its share"
        times += drawn
    for one in (0, 1):
        share = times[:, layers == one][left[:, layers == one]] / 2000
        assert share == pytest.approx(60 / left[:, layers == one].sum(), abs=0.05)


@pytest.mark.parametrize("rates", [(0.0, 0.0, 0.03), (0.002, 0.0005, 0.001), (0.02, 0.05, 0.0), (0.3, 0.0, 0.0)])
def test_the_bound_by_counting_holds_however_the_flips_lie(rates):
    """Strata of unequal sizes, flips crowded into a few ablations: at least 95 % of the draws, whatever the network."""
    rng = np.random.default_rng(1)
    layers = np.repeat([0, 1, 2], [30, 20, 10])
    flips = np.zeros((100, 60), bool)
    for one, rate in enumerate(rates):
        columns = np.flatnonzero(layers == one)
        flips[:, columns[: max(1, len(columns) // 5)]] = rng.random((100, max(1, len(columns) // 5))) < 5 * rate
    of_layer, in_all = [], []
    for _ in range(600):
        drawn = lot.draw(np.ones(flips.shape, bool), layers, 80, rng)
        seen, num_left, hides = (np.bincount(layers, one.sum(0)) for one in (flips & drawn, ~drawn, flips & ~drawn))
        of_layer.append(hides <= most_by_lot(seen, num_left / 80))
        in_all.append(hides.sum() <= most_by_lot(seen.sum(), (num_left / 80).max()))
    assert np.mean(of_layer, 0).min() >= 0.945 and np.mean(in_all) >= 0.945


def test_a_bound_by_counting_falls_with_what_was_drawn_and_says_nothing_of_nothing():
    assert most_by_lot(0, 10.0) == pytest.approx(30, rel=0.01) and most_by_lot(0, 1.0) == pytest.approx(3, rel=0.01)
    assert most_by_lot([0, 4], [0.0, np.inf]).tolist() == [0, np.inf]


def test_a_layer_is_distrusted_where_its_lot_flips_more_than_chance_has_it():
    distrusted = lot.contradicted(np.array([0, 1, 1, 3, 5]), np.array([0.0, 0.01, 0.5, 2.0, 0.2]))
    assert distrusted.tolist() == [False, True, False, False, True]


def test_flips_that_a_lot_shows_widen_the_bounds_of_the_layers_other_ablations():
    layers, some = np.repeat([0, 1], 20), np.full(40, 0.01)
    of_lot = {
        "num_left": np.full(40, 1000.0),
        "lot_drawn": np.full(40, 10),
        "lot_gained": np.zeros(40),
        "lot_expected": np.full(40, 1e-3),
    }
    lost = np.zeros(40)
    calm = hidden(some, some, 0 * some, some, layers, **of_lot, lot_lost=lost)
    lost[3] = 4
    warned = hidden(some, some, 0 * some, some, layers, **of_lot, lot_lost=lost)
    assert np.allclose(calm.up, calm.up[0]) and (warned.up[:20] > 15).all(), "4 of 200 drawn, of 1,000 left"
    assert (warned.up[20:] < 0.5 * warned.up[0]).all() and (warned.down[:20] < 1).all()
    wide, narrow = (screen_bounds(np.zeros(40), np.zeros(40), 2000, one) for one in (warned, calm))
    assert (wide[1][:20] > 3 * narrow[1][:20]).all() and np.array_equal(wide[0], narrow[0])


def test_bounds_hold_flips_that_no_prediction_tells_of_in_a_simulation():
    """Layers in which a share of the pairs flips whatever was predicted; the lot is all that knows."""
    rng = np.random.default_rng(3)
    layers, inside = np.repeat(np.arange(8), 25), []
    for _ in range(60):
        rate = np.where(rng.random(8) < 0.5, 0, rng.gamma(1.0, 0.004, 8))[layers]
        left, drawn = np.full(200, 900), np.full(200, 8)
        lot_lost, hides = rng.binomial(drawn, rate), rng.binomial(left, rate)
        zero = np.zeros(200)
        may_be_hidden = hidden(
            zero,
            zero,
            zero,
            zero,
            layers,
            num_left=left,
            lot_drawn=drawn,
            lot_lost=lot_lost,
            lot_gained=zero,
            lot_expected=zero,
        )
        low, high = screen_bounds(zero, zero, 1000, may_be_hidden)
        inside += list(((low <= hides / 1000) & (hides / 1000 <= high))[hides > 0])
    assert len(inside) > 2000 and np.mean(inside) >= 0.94


def test_the_p_value_of_a_screened_ablation_counts_what_may_be_hidden_against_it():
    lost, gained = np.array([12, 0, 5, 3]), np.array([2, 9, 5, 0])
    none, some = np.zeros(4), np.full(4, 1.5)
    shape = np.full(4, 2.0)
    nothing = mcnemar_of_screened(lost, gained, Hidden(none, shape, none, shape))
    assert nothing == pytest.approx(mcnemar_exact(lost, gained))
    p_values = mcnemar_of_screened(lost, gained, Hidden(none, shape, some, shape))
    chances = stats.nbinom.pmf(np.arange(200), 2.0, 2 / 3.5)
    by_hand = sum(chance * (mcnemar_exact(12, 2 + k)[()] if 2 + k < 12 else 1) for k, chance in enumerate(chances))
    assert p_values[0] == pytest.approx(by_hand) and p_values[0] > nothing[0]
    assert p_values[1] == pytest.approx(nothing[1]), "only wrong answers that were gained could weaken a loss"
    assert p_values[2] == 1 and p_values[3] > nothing[3] and (p_values <= 1).all()
