import numpy as np
import pytest
from explain_nets import smooth_pixels

from melanoma_fair_xai.base.errors import UserError
from melanoma_fair_xai.explain.traps import set_trap, trap_effect

PIXELS = smooth_pixels(4, 64)
IDS = list("abcd")


@pytest.mark.parametrize("name", ["ruler", "ink", "dark_corner"])
def test_a_pasted_artefact_alters_its_own_pixels_alone_and_hangs_on_the_image(name):
    pasted, altered = set_trap(name, PIXELS, None, IDS, 0)
    assert np.array_equal(pasted[~altered], PIXELS[~altered])
    assert 0.01 < altered.mean() < 0.5
    alone, _ = set_trap(name, PIXELS[2:3], None, IDS[2:3], 0)
    assert np.array_equal(alone[0], pasted[2])
    assert not np.array_equal(set_trap(name, PIXELS, None, IDS, 1)[1], altered)


def test_erasing_paints_with_the_mean_of_the_surroundings():
    masks = np.zeros((4, 64, 64), dtype=bool)
    masks[:2, 20:40, 25:50] = True
    lesion, altered = set_trap("erase_lesion", PIXELS, masks, IDS, 0)
    background, rest = set_trap("erase_background", PIXELS, masks, IDS, 0)
    for row in range(2):
        colour = np.round(PIXELS[row][~masks[row]].mean(axis=0)).astype(np.uint8)
        assert (lesion[row][masks[row]] == colour).all() and (background[row][~masks[row]] == colour).all()
        assert np.array_equal(lesion[row][~masks[row]], PIXELS[row][~masks[row]])
        assert np.array_equal(background[row][masks[row]], PIXELS[row][masks[row]])
    assert np.array_equal(altered[:2], masks[:2]) and np.array_equal(rest[:2], ~masks[:2])
    assert not altered[2:].any() and np.array_equal(lesion[2:], PIXELS[2:]), "no mask, nothing to erase"


def test_the_effect_is_the_rise_of_the_score_and_the_turn_of_the_decision_where_something_was_altered():
    before, after = np.float32([0.25, 0.5, 0.75, 0.5, 0.25]), np.float32([0.5, 0.25, 1, 0.5, 0.5])
    altered = np.zeros((5, 2, 2), dtype=bool)
    altered[:4, 0, 0] = True
    change, turned = trap_effect(before, after, 0.5, altered)
    np.testing.assert_array_equal(change, [0.25, -0.25, 0.25, 0, np.nan])
    np.testing.assert_array_equal(turned, [1, 1, 0, 0, np.nan])


def test_what_cannot_be_set_is_refused():
    with pytest.raises(UserError, match="--trap rule: unknown; choose from .*ruler.*erase_background"):
        set_trap("rule", PIXELS, None, IDS, 0)
    with pytest.raises(UserError, match="needs lesion masks"):
        set_trap("erase_lesion", PIXELS, None, IDS, 0)
    with pytest.raises(UserError, match="square"):
        set_trap("ruler", PIXELS[:, :, :40], None, IDS, 0)
