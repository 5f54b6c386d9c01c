"""Rules about images one by one."""
import io

import numpy as np
import pytest
from PIL import Image

from vilg.config import from_dict
from vilg.data.filtering.pictures import PictureRules, PictureRulesConfig
from vilg.errors import ConfigError

RULES = {"sides": {"least": 20, "most": 200}, "aspect": 2.0, "pixels": {"least": 500, "most": 9000}}


def png(width, height, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "png")
    return buffer.getvalue()


@pytest.mark.parametrize("width, height, rule", [
    (20, 40, None), (40, 20, None), (19, 30, "sides"), (201, 25, "sides"), (41, 20, "aspect"), (20, 41, "aspect"),
    (100, 90, None), (100, 91, "pixels"), (20, 24, "pixels")])
def test_limits_hold_on_both_sides(width, height, rule):
    looked = PictureRules(from_dict(PictureRulesConfig, RULES)).look(png(width, height), "a")
    if rule is None:
        assert looked.shape == (height, width, 3)
    else:
        assert looked == (rule, f"{width}x{height}")


def test_a_huge_image_is_dropped_by_its_header():
    assert PictureRules(PictureRulesConfig()).look(png(9000, 9000, "1"), "a") == ("pixels", "9000x9000")


def test_damage_is_named():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, [90, 90, 3], "uint8"))
    buffer = io.BytesIO()
    noise.save(buffer, "jpeg")
    rules = PictureRules(PictureRulesConfig())
    assert rules.look(buffer.getvalue()[:900], "a").rule == "damaged"
    assert "none of the formats" in rules.look(b"<html>", "a").value


def test_a_range_the_wrong_way_round():
    with pytest.raises(ConfigError, match=r"sides: least \(9\) is above most \(3\)"):
        from_dict(PictureRulesConfig, {"sides": {"least": 9, "most": 3}})
