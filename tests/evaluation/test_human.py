"""The human kit: what pages show and hide, a real browser, and what the report makes of ratings."""
import base64
import copy
import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

import chromium
from vilg.data.worlds import scenes
from vilg.errors import ConfigError, DataError
from vilg.evaluation.human import report
from vilg.evaluation.human.kinds import KINDS, Item, salt_of
from vilg.evaluation.human.kit import make_kit, read_items

SYSTEMS = ("ernie_secret", "other_secret")


def make_items(folder, count=12, systems=SYSTEMS):
    """Every system's picture of every prompt, each with its maker in the file's metadata."""
    items = []
    for number in range(count):
        scene = scenes.sample_scene(number, "train")
        for place, system in enumerate(systems):
            path = folder / f"{system}_{number}.png"
            image = Image.fromarray(np.roll(scenes.render(scene, 32), place, 0))
            image.save(path)
            items.append(Item(str(number), system, path, f"第{number}句</script>话"))
    return items


@pytest.fixture
def kit(tmp_path):
    key = make_kit(make_items(tmp_path), "images", tmp_path / "kit", raters=2, seed=5)
    return key, tmp_path / "kit"


def content_of(page):
    return json.loads(re.search(r"const kit = (.*);\n", page.read_text(encoding="utf-8"))[1])


def export(key, rater, rate):
    """What a page exports when ``rate(trial, item)`` gives the numbers."""
    rows = [[trial["trial"], rate(trial, key["items"][trial["number"]])] for trial in key["raters"][str(rater)]]
    rows = [row for row in rows if row[1] is not None]
    text = json.dumps([key["fingerprint"], rater, rows, salt_of(key["fingerprint"], rater)], separators=(",", ":"))
    return {"format": 1, "kit": key["fingerprint"], "rater": rater, "ratings": rows,
            "digest": hashlib.sha256(text.encode()).hexdigest()}


def written(tmp_path, *exports):
    paths = [tmp_path / f"export_{number}.json" for number in range(len(exports))]
    for path, content in zip(paths, exports):
        path.write_text(json.dumps(content))
    return paths


def careful(trial, item):
    if trial["gold"]:
        return [3, 3, 1]
    best = 5 if item["system"] == SYSTEMS[0] else 2
    return [best, best, best - int(item["item"]) % 2]


def test_a_page_names_no_system_and_no_file(kit):
    key, folder = kit
    for rater in (1, 2):
        text = (folder / f"rater_{rater}.html").read_text(encoding="utf-8")
        assert not any(word in text for word in (*SYSTEMS, ".png", "gold", "repeat", str(folder)))
        assert re.findall(r'(?:src|href)="?(?:http|//|file)', text) == []
        content = content_of(folder / f"rater_{rater}.html")
        assert all(image.startswith("data:image/webp;base64,") for image in content["images"])
        assert {one["trial"] for one in content["trials"]} == {one["trial"] for one in key["raters"][str(rater)]}
    assert "第0句</script>话" in {trial["text"] for trial in content["trials"]}


def test_pictures_to_be_rated_keep_every_pixel(kit):
    import io

    key, folder = kit
    content = content_of(folder / "rater_1.html")
    by_trial = {trial["trial"]: trial for trial in key["raters"]["1"]}
    shown = next(trial for trial in content["trials"] if by_trial[trial["trial"]]["role"] == "plain")
    item = key["items"][by_trial[shown["trial"]]["number"]]
    image = Image.open(io.BytesIO(base64.b64decode(content["images"][shown["image"]].partition(",")[2])))
    with Image.open(folder.parent / f"{item['system']}_{item['item']}.png") as drawn:
        assert (np.asarray(image.convert("RGB")) == np.asarray(drawn)).all()


def test_raters_have_orders_repeats_and_known_answers_of_their_own(kit):
    key, _ = kit
    orders = [[trial["number"] for trial in key["raters"][rater]] for rater in ("1", "2")]
    assert orders[0] != orders[1] and all(set(range(26)) == set(order) for order in orders)
    for trials in key["raters"].values():
        roles = [trial["role"] for trial in trials]
        assert roles.count("repeat") == 2 and roles.count("gold") == 2 and len(set(t["trial"] for t in trials)) == 28
        for place, trial in enumerate(trials):
            if trial["role"] == "repeat":
                first = next(index for index, other in enumerate(trials) if other["trial"] == trial["of"])
                assert trials[first]["number"] == trial["number"] and first < 13 <= place
    for one in key["items"]:
        assert (one["system"] == "") == (one["text"] != f"第{one['item']}句</script>话")


def test_the_same_seed_makes_the_same_kit_and_another_is_refused(kit, tmp_path):
    key, folder = kit
    items = make_items(tmp_path)
    assert make_kit(items, "images", folder, raters=2, seed=5) == key
    with pytest.raises(ConfigError, match="holds another kit"):
        make_kit(items, "images", folder, raters=2, seed=6)
    assert make_kit(items, "images", tmp_path / "other", raters=2, seed=6)["raters"] != key["raters"]


@pytest.mark.parametrize("change, says", [
    (lambda items: items[:1], "at least two"), (lambda items: [*items, items[0]], "item 0 twice"),
    (lambda items: items[:-1], "other_secret 11"),
    (lambda items: [*items[:-1], Item("11", SYSTEMS[1], items[0].image.with_name("gone.png"), "文")], "gone.png")])
def test_items_that_make_no_kit_are_refused(tmp_path, change, says):
    with pytest.raises(DataError, match=says):
        make_kit(change(make_items(tmp_path)), "images", tmp_path / "kit")
    with pytest.raises(ConfigError, match="images, captions, answers"):
        make_kit(make_items(tmp_path), "paintings", tmp_path / "kit")


def test_items_are_read_with_their_known_answers(tmp_path):
    path = tmp_path / "items.jsonl"
    line = {"item": 1, "system": "a", "image": "a.png", "text": "文", "gold": {"relevance": [4, 5]}}
    path.write_text(json.dumps(line) + "\n" + json.dumps({**line, "gold": None}))
    first, second = read_items(path, "images")
    assert first.gold == {"relevance": (4, 5)} and second.gold == {} and first.image == tmp_path / "a.png"
    for wrong, says in (({"gold": {"beauty": [1, 2]}}, "line 1: gold"), ({"text": " "}, "line 1: text")):
        path.write_text(json.dumps(line | wrong))
        with pytest.raises(DataError, match=says):
            read_items(path, "images")
    path.write_text(json.dumps(line))
    with pytest.raises(DataError, match="question"):
        read_items(path, "answers")


def test_the_report_tells_systems_raters_and_repeats_apart(kit, tmp_path, caplog):
    key, folder = kit

    def careless(trial, item):
        return [1, 1, 5] if trial["role"] in ("gold", "repeat") else careful(trial, item)

    paths = written(tmp_path, export(key, 1, careful), export(key, 2, careless))
    found = report.human_figures(key, report.read_ratings(paths, report.read_key(folder / "key.json")))
    assert found["ernie_secret.clarity.mean"] == 5 and found["other_secret.clarity.mean"] == 2
    assert found["ernie_secret.relevance.mean"] == 4.5
    assert found["ernie_secret.relevance.low"] < 4.5 < found["ernie_secret.relevance.high"]
    assert found["alpha.clarity"] == 1 and found["gold.1"] == 1 and found["gold.2"] == 0
    assert found["repeats.clarity.equal"] == 0.5
    assert "rater 2 has 0 of 2 known answers right" in caplog.text


def test_agreement_is_that_of_krippendorff(kit, tmp_path):
    krippendorff = pytest.importorskip("krippendorff")
    key, _ = kit
    rng = np.random.default_rng(0)
    exports = [export(key, rater, lambda trial, item: rng.integers(1, 6, 3).tolist()) for rater in (1, 2)]
    ratings = report.read_ratings(written(tmp_path, *exports), key)
    table = np.full([2, len(key["items"])], np.nan)
    for rater, given in ratings.items():
        for trial in key["raters"][rater]:
            if trial["role"] == "plain":
                table[int(rater) - 1, trial["number"]] = given[trial["trial"]][1]
    wanted = krippendorff.alpha(table, level_of_measurement="ordinal")
    assert report.human_figures(key, ratings)["alpha.texture"] == pytest.approx(wanted, abs=1e-9)


def test_ratings_that_are_not_the_kits_are_refused(kit, tmp_path):
    key, folder = kit
    right = export(key, 1, careful)

    def refused(*exports):
        with pytest.raises(DataError) as error:
            report.read_ratings(written(tmp_path, *exports), key)
        return str(error.value)

    other = make_kit(make_items(tmp_path), "images", tmp_path / "other", raters=2, seed=9)
    said = refused(export(other, 1, careful))
    assert other["fingerprint"] in said and key["fingerprint"] in said
    edited = copy.deepcopy(right)
    edited["ratings"][0][1][0] = 1 if edited["ratings"][0][1][0] != 1 else 2
    assert "was edited" in refused(edited)
    assert "another export of rater 1" in refused(right, right)
    assert "is of rater 3" in refused(right | {"rater": 3})
    assert "no rating of this kit" in refused(export(key, 1, lambda trial, item: [9, 9, 9]))
    assert "not an export" in refused([1])
    changed = json.loads((folder / "key.json").read_text())
    changed["items"][0]["system"] = "mine"
    (folder / "key.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match="was changed"):
        report.read_key(folder / "key.json")


def test_what_is_not_rated_is_left_out_and_named(kit, tmp_path, caplog):
    key, _ = kit
    some = export(key, 1, lambda trial, item: careful(trial, item) if item["item"] in "0123" else None)
    found = report.human_figures(key, report.read_ratings(written(tmp_path, some), key))
    assert found["ernie_secret.clarity.mean"] == 5 and found["alpha.clarity"] is None
    assert "left" in caplog.text and "unrated" in caplog.text
    with pytest.raises(DataError, match="nobody rated"):
        report.human_figures(key, report.read_ratings(written(tmp_path, export(key, 1, lambda *_: None)), key))


@pytest.mark.skipif(not chromium.find(), reason="no chromium")
def test_formats_human_in_a_real_browser(tmp_path):
    """Rated by keys alone, left half way, gone on with, exported; the export is what the report takes."""
    key = make_kit(make_items(tmp_path, 3), "images", tmp_path / "kit", raters=1, seed=1)
    page = tmp_path / "kit" / "rater_1.html"
    trials = [trial["trial"] for trial in key["raters"]["1"]]
    numbers = {trial: [1 + (place + line) % 5 for line in range(3)] for place, trial in enumerate(trials)}
    browser = chromium.Browser(tmp_path / "profile")
    browser.open(page)
    assert browser.ask("document.getElementById('image').naturalWidth") == 32
    for trial in trials[:3]:
        for number in numbers[trial]:
            browser.press(str(number))
        browser.press("ArrowRight")
    browser.press("9")  # is no rating
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == [] == browser.errors

    browser.leave()
    browser.open(page)
    assert browser.ask("document.getElementById('progress').value") == 3
    assert browser.ask("document.getElementById('count').textContent").startswith(f"4 / {len(trials)}")
    browser.press("5")
    browser.press("ArrowUp")  # back to the line that was rated, and another number for it
    for trial in trials[3:]:
        for number in numbers[trial]:
            browser.press(str(number))
        browser.press("ArrowRight")
    browser.press("e")
    exported = browser.ask("document.getElementById('exported').value")
    assert "thank you" in browser.ask("document.getElementById('note').textContent") and browser.errors == []
    browser.close()
    assert dict(json.loads(exported)["ratings"]) == numbers
    (tmp_path / "ratings.json").write_text(exported, encoding="utf-8")
    ratings = report.read_ratings([tmp_path / "ratings.json"], report.read_key(tmp_path / "kit" / "key.json"))
    assert ratings == {"1": numbers}
    assert len([name for name in report.human_figures(key, ratings) if name.endswith(".mean")]) == 2 * len(
        KINDS["images"])
