"""Whether an accuracy is that of guessing: nearly always a mistake in how network and images were put together."""

from __future__ import annotations

from scipy import stats


def is_at_chance(num_correct: int, num_images: int, num_classes: int, guesses: int = 1) -> bool:
    """Tell whether `num_correct` of `num_images` is no more than guessing among `num_classes` gives.

    So it is where guessing would get as many right in one of twenty cases or more (binomial), and where so many
    images were looked at that the 95 % upper limit (Clopper and Pearson) stays below the middle between guessing and
    perfect. `guesses` is 5 for top-5.

    >>> is_at_chance(26, 100, 4), is_at_chance(50, 100, 4)
    (True, False)
    """
    if num_images < 1 or num_classes <= guesses:
        return False
    chance = guesses / num_classes
    could_be_guessed = stats.binom.sf(num_correct - 1, num_images, chance) > 0.05
    upper = stats.beta.ppf(0.95, num_correct + 1, num_images - num_correct) if num_correct < num_images else 1.0
    return bool(could_be_guessed and upper < (1 + chance) / 2)


def chance_note(num_correct: int, num_images: int, num_classes: int, guesses: int = 1) -> str | None:
    """Word the warning for an accuracy that `is_at_chance`; None for any other.

    >>> chance_note(9, 100, num_classes=10).partition(",")[0]
    'the intact network has 9.00 % of 100 images right'
    >>> chance_note(60, 100, num_classes=10) is None
    True
    """
    if not is_at_chance(num_correct, num_images, num_classes, guesses):
        return None
    accuracy, chance = 100 * num_correct / num_images, 100 * guesses / num_classes
    return (
        f"the intact network has {accuracy:.2f} % of {num_images:,} images right, where guessing gives {chance:.2f} % "
        f"({num_classes} classes). Unless it is untrained, network and images do not fit: likely are another order of "
        "the classes (--class-order), another normalization (--mean, --std), or other channels (BGR for RGB, grey for "
        "colour). What is measured so says little"
    )
