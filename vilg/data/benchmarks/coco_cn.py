"""COCO-CN (Li et al. 2019, arXiv 1805.08661): Chinese captions and translations for 20 342 images of MS-COCO."""
import re
from pathlib import Path

from vilg.data.benchmarks.coco import image_key, image_path
from vilg.data.benchmarks.files import CaptionedImages, keyed, only_match, read_pairs, read_text
from vilg.errors import DataError

SPLITS = ("train", "val", "test")
KINDS = ("human-written", "manually-translated")
_TAGGED = re.compile(r"\S+[:/][A-Za-z]+")


def read_coco_cn(root: str | Path, split: str = "test", kind: str = "human-written", cut: bool = True
                 ) -> CaptionedImages:
    """A split of ``coco-cn-version1805v1.1`` under ``root``, with MS-COCO's ``train2014`` and ``val2014`` beside it.

    References are the lines ``COCO_val2014_…#0<TAB>text`` of ``imageid.<kind>-caption.txt`` or, where ``cut``, of the
    data set's own cut file, ``imageid.<kind>-caption.bosonseg.txt``. Raises DataError for another split or kind, for
    files that are not there, and for an image of the split without a caption.
    """
    if split not in SPLITS or kind not in KINDS:
        raise DataError(f"COCO-CN has the splits {', '.join(SPLITS)} and the captions {' and '.join(KINDS)}, not "
                        f"{split if split not in SPLITS else kind}")
    listing = only_match(Path(root), f"coco-cn_{split}.txt", f"COCO-CN's {split}")
    names = [line.strip() for line in read_text(listing).split("\n") if line.strip()]
    captions = listing.with_name(f"imageid.{kind}-caption{'.bosonseg' if cut else ''}.txt")
    if cut and not captions.is_file():
        raise DataError(f"{captions}: COCO-CN's words come cut in this file, and it is not there; add it, or choose "
                        "the cut jieba or characters")
    texts: dict[str, list[str]] = {}
    for name, text in read_pairs(captions):
        if text:
            texts.setdefault(keyed(image_key, name, captions), []).append(_untagged(text) if cut else text)
    images = Path(root) if any((Path(root) / part).is_dir() for part in ("train2014", "val2014")) else listing.parent
    keys = [keyed(image_key, name, listing) for name in names]
    paths = {key: image_path(images, name.split("_")[1] if name.startswith("COCO_") else "val2014", key)
             for key, name in zip(keys, names)}
    if len(paths) < len(names):
        raise DataError(f"{listing}: lists an image twice; keep it once")
    bare = [key for key in paths if key not in texts]
    if bare or not paths:
        raise DataError(f"{captions}: has no caption for {len(bare)} of the {len(paths)} images of {listing.name}"
                        + (f", such as {bare[0]}" if bare else "") + "; use files of the same version")
    return CaptionedImages(f"coco-cn {split}, {kind}", paths, {key: texts[key] for key in paths}, cut, image_key)


def _untagged(text: str) -> str:
    """Words without the part of speech that segmenters write behind each (男人:n); text without them as it is."""
    words = text.split()
    if words and all(_TAGGED.fullmatch(word) for word in words):
        words = [re.sub(r"[:/][A-Za-z]+$", "", word) for word in words]
    return " ".join(words)
