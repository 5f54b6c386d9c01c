import shutil

import pytest

from vilg.errors import CheckpointError
from vilg.release.folder import load_bidirectional


@pytest.fixture
def folder(released_model, tmp_path):
    return shutil.copytree(released_model, tmp_path / "copy")


def test_a_folder_without_its_description_is_refused(folder):
    (folder / "model.yaml").unlink()
    with pytest.raises(CheckpointError, match="model.yaml"):
        load_bidirectional(folder)


def test_weights_cut_short_are_refused_by_name(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors: not a whole safetensors file"):
        load_bidirectional(folder)


def test_weights_of_another_size_name_the_first_that_differ(folder):
    text = (folder / "model.yaml").read_text(encoding="utf-8")
    (folder / "model.yaml").write_text(text.replace("width: 16", "width: 32"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="in the file and"):
        load_bidirectional(folder)


def test_another_image_tokenizer_is_refused(folder):
    description = (folder / "model.yaml").read_text(encoding="utf-8").splitlines()
    changed = ["image_tokenizer: 0123456789abcdef" if line.startswith("image_tokenizer:") else line
               for line in description]
    (folder / "model.yaml").write_text("\n".join(changed), encoding="utf-8")
    with pytest.raises(CheckpointError, match="image tokenizer 0123456789abcdef"):
        load_bidirectional(folder)


def test_another_vocabulary_is_refused(folder):
    with open(folder / "vocab.txt", "a", encoding="utf-8") as vocabulary:
        vocabulary.write("新\n")
    with pytest.raises(CheckpointError, match="vocabulary"):
        load_bidirectional(folder)
