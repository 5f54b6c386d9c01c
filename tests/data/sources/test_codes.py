import numpy as np
import pytest

from vilg import config
from vilg.data.config import DataConfig, build_stream
from vilg.data.loader import Loader, LoaderConfig, Mixture
from vilg.data.sample import BrokenSample
from vilg.data.sources.codes import CODES_FILE, TEXTS_FILE, CodesConfig, CodesSource, write_codes
from vilg.data.worlds.scenes.source import ScenesConfig, ScenesSource
from vilg.errors import ConfigError, DataError


def encode(pictures):
    return pictures[:, ::16, ::16, 0].reshape(len(pictures), -1).astype("int64") * 3


@pytest.fixture
def cache(tmp_path):
    source = ScenesSource(ScenesConfig(count=10))
    report = write_codes(tmp_path, source, encode, 64, "abc", batch_size=4)
    assert (report.written, report.broken) == (10, 0)
    return tmp_path, source


def test_round_trip(cache):
    folder, source = cache
    read = CodesSource(CodesConfig(path=str(folder)), "abc")
    assert len(read) == 10
    for index in (0, 9):
        expected = source[index]
        np.testing.assert_array_equal(read[index].codes, encode(expected.image[None])[0])
        assert read[index].codes.dtype == np.int64 and read[index].image is None
        assert (read[index].key, read[index].captions, read[index].questions) == (
            expected.key, expected.captions, expected.questions)
    only_first = CodesSource(CodesConfig(path=str(folder), first_caption_only=True), "abc")
    assert only_first[3].captions == source[3].captions[:1]


def test_another_tokenizer_or_a_task_on_pictures_is_refused(cache):
    folder, _ = cache
    with pytest.raises(DataError, match="image tokenizer abc, this run's is xyz.*encode"):
        CodesSource(CodesConfig(path=str(folder)), "xyz")
    with pytest.raises(DataError, match="trains on images"):
        CodesSource(CodesConfig(path=str(folder)), None)


def test_damaged_cache_is_refused(cache):
    folder, _ = cache
    texts = (folder / TEXTS_FILE).read_text(encoding="utf-8").splitlines()
    (folder / TEXTS_FILE).write_text("\n".join(texts[:-1]), encoding="utf-8")
    with pytest.raises(DataError, match="10 images' codes and 9 lines"):
        CodesSource(CodesConfig(path=str(folder)), "abc")
    content = (folder / CODES_FILE).read_bytes()
    (folder / CODES_FILE).write_bytes(content[:-7])
    with pytest.raises(DataError, match="not a whole file of codes"):
        CodesSource(CodesConfig(path=str(folder)), "abc")
    (folder / CODES_FILE).unlink()
    with pytest.raises(DataError, match="encode_images"):
        CodesSource(CodesConfig(path=str(folder)), "abc")


def test_a_line_that_was_edited_badly_is_named_and_counted(cache):
    folder, _ = cache
    lines = (folder / TEXTS_FILE).read_text(encoding="utf-8").splitlines()
    lines[3], lines[4] = '{"key":', '{"key": "k", "captions": ["一句"]}'
    (folder / TEXTS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = CodesSource(CodesConfig(path=str(folder)), "abc")
    with pytest.raises(BrokenSample, match=f"{folder}/{TEXTS_FILE} line 4: not a record like .\"key\""):
        source[3]
    assert (source[4].captions, source[4].questions) == (["一句"], [])


class Partly:
    """Ten scenes of which two are broken."""

    def __init__(self):
        self.scenes = ScenesSource(ScenesConfig(count=10))

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if index in (2, 7):
            raise BrokenSample(f"number {index}", "broken on purpose")
        return self.scenes[index]


def test_broken_samples_are_left_out_up_to_the_limit(tmp_path, caplog):
    report = write_codes(tmp_path, Partly(), encode, 64, "abc", max_broken=0.2)
    assert (report.written, report.broken) == (8, 2)
    assert caplog.text.count("number 2") == 1 and caplog.text.count("number 7") == 1
    assert len(CodesSource(CodesConfig(path=str(tmp_path)), "abc")) == 8
    with pytest.raises(DataError, match="2 of 10 samples are broken"):
        write_codes(tmp_path, Partly(), encode, 64, "abc", max_broken=0.1)
    with pytest.raises(DataError, match="there are no codes"):  # half a cache is never read
        CodesSource(CodesConfig(path=str(tmp_path)), "abc")


def test_codes_feed_the_loader_and_do_not_mix_with_pictures(cache):
    folder, _ = cache
    data = config.from_dict(DataConfig, {"sources": [{"kind": "codes", "path": str(folder), "repeat": 2}]})
    loader = Loader(build_stream(data, "abc"), LoaderConfig(), lambda samples, seeds: {
        "codes": np.stack([sample.codes for sample in samples])}, batch_size=5)
    assert next(loader)["codes"].shape == (5, 16)
    loader.close()
    with pytest.raises(ConfigError, match="do not mix"):
        config.from_dict(DataConfig, {"sources": [{"kind": "codes", "path": str(folder)}, {"kind": "scenes"}]})
    assert len(Mixture([CodesSource(CodesConfig(path=str(folder)), "abc")], [3])) == 30
