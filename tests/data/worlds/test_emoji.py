import os

import numpy as np
import pytest

from vilg.data.sources.folder import FolderConfig, FolderSource
from vilg.data.sources.table import TableConfig, TableSource
from vilg.data.worlds import emoji
from vilg.errors import DataError

installed = pytest.mark.skipif(not os.path.exists(emoji.FONT) or not os.path.isdir(emoji.ANNOTATIONS),
                               reason="needs fonts-noto-color-emoji and unicode-cldr-core")


@pytest.fixture(scope="module")
def found():
    return emoji.collect()


@installed
def test_the_collection(found):
    names = [one.name for one in found.emoji]
    assert len(names) > 1500 and len({name.lower() for name in names}) == len(names)
    assert len({one.picture.tobytes() for one in found.emoji}) == len(names)
    assert {"大象", "旗：中国", "旗：法国", "彩虹"} <= set(names)
    assert not any(ord(letter) in emoji.SKIN_TONES for one in found.emoji for letter in one.text)
    assert not any(" " in name for name in names)
    assert set(found.left_out) == {"skin tones", "not a single glyph of the font", "picture of another"}


@installed
def test_pictures_are_centred_on_white_and_captions_short(found):
    for one in found.emoji[::40]:
        assert one.picture.shape == (136, 136, 3) and (one.picture[0] == 255).all()
        rows, columns = np.nonzero((one.picture != 255).any(-1))
        assert abs(rows.min() + rows.max() - 135) <= 60 and abs(columns.min() + columns.max() - 135) <= 30
        assert one.captions[0] == one.name and max(map(len, one.captions)) <= 24 and len(one.captions) <= 2


@installed
def test_written_as_users_own_data(found, tmp_path):
    emoji.write(found.emoji[:12], tmp_path, size=32)
    folder = FolderSource(FolderConfig(path=str(tmp_path)))
    table = TableSource(TableConfig(path=str(tmp_path / "table.jsonl")))
    assert len(folder) == len(table) == 12
    by_name = {folder[i].captions[0]: folder[i] for i in range(12)}
    for number, one in enumerate(found.emoji[:12]):
        assert by_name[one.name].captions == one.captions == table[number].captions
        assert table[number].questions == [("这是什么？", one.name)]
        np.testing.assert_array_equal(by_name[one.name].image, table[number].image)
        assert table[number].image.shape == (32, 32, 3)
    with pytest.raises(DataError, match="holds other pictures already"):
        emoji.write(found.emoji[1:3], tmp_path)
    with pytest.raises(DataError, match="a size of 0 pixels"):
        emoji.write(found.emoji[:1], tmp_path / "new", size=0)


def test_missing_packages_are_named(tmp_path):
    with pytest.raises(DataError, match="apt-get install unicode-cldr-core"):
        emoji.collect(annotations=str(tmp_path))
    for part in ("annotations", "annotationsDerived"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "zh.xml").write_text("<ldml></ldml>")
    with pytest.raises(DataError, match="apt-get install fonts-noto-color-emoji"):
        emoji.collect(font=str(tmp_path / "none.ttf"), annotations=str(tmp_path))
    (tmp_path / "annotations" / "zh.xml").write_text("<ldml>")
    with pytest.raises(DataError, match="not a whole CLDR file"):
        emoji.collect(annotations=str(tmp_path))
