"""The same rules as a plain loop over a list in memory: what a build is held against, on any engine."""
import io
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vilg.data.building.parts import find_parts
from vilg.data.building.readers import Rows
from vilg.data.filtering import likeness
from vilg.data.filtering.texts import TextRules
from vilg.data.images import read_image
from vilg.data.sample import BrokenSample, Reading


@dataclass
class Item:
    key: str
    source: str
    captions: list[str]
    content: bytes | None = None
    image: np.ndarray | None = None
    facts: dict = field(default_factory=dict)


class PlainLoop:
    """``kept``: captions by key, in order; ``drops``: (key, rule, text or None, whether the sample is gone with it)."""

    def __init__(self, config, inputs, encoder=None):
        self.config, self.rules, self.encoder = config, config.rules, encoder
        self.drops = []
        self.text_rules = TextRules(config.rules.texts)
        items = []
        for part in find_parts(inputs, config.part_rows):
            for row in Rows(part, config.images):
                item = self.read(row)
                if item:
                    items.append(item)
        items = self.frequent(items)
        if config.images and self.rules.same_bytes:
            items = self.first_only("same_bytes", items, lambda item: item.content)
        if config.images and self.rules.same_pixels:
            items = self.first_only("same_pixels", items, lambda item: (item.image.shape, item.image.tobytes()))
        if self.rules.near_images:
            items = self.near_images(items)
        if self.rules.near_texts:
            items = self.near_texts(items)
        self.kept = {item.key: item.captions for item in items}

    def counts(self):
        return Counter(rule for _, rule, _, gone in self.drops if gone)

    def drop(self, item, rule):
        self.drops.append((item.key, rule, None, True))

    def drop_texts(self, item, rule, texts):
        for text in texts:
            item.captions.remove(text)
            self.drops.append((item.key, rule, text, not item.captions))
        return item if item.captions else None

    def read(self, row):
        item = Item(row.key, row.name, [])
        if row.problem or not row.said.captions:
            return self.drop(item, "damaged")
        if self.config.images:
            rule = self.of_image(item, row)
            if rule:
                return self.drop(item, rule)
        item.captions = list(dict.fromkeys(row.said.captions))
        for text in list(item.captions):
            reason = self.text_rules.reason(text)
            if reason:
                self.drop_texts(item, reason.rule, [text])
        if self.rules.similarity and item.captions:
            for text in list(item.captions):
                score = self.encoder.paired_similarity([text], [item.image])[0]
                if not score > self.rules.similarity.more_than:
                    self.drop_texts(item, "unread" if np.isnan(score) else "similarity", [text])
        return item if item.captions else None

    def of_image(self, item, row):
        pictures = self.rules.pictures
        try:
            width, height = Image.open(io.BytesIO(row.image)).size
            if width * height > pictures.pixels.most:
                return "pixels"
            if min(width, height) < pictures.sides.least:
                return "sides"
            if max(width, height) / min(width, height) > pictures.aspect:
                return "aspect"
            item.content, item.image = row.image, read_image(row.image, row.name, Reading(max_pixels=1 << 40))
        except (BrokenSample, OSError, SyntaxError):
            return "damaged"

    def frequent(self, items):
        if self.rules.frequency is None:
            return items
        counts = Counter(text for item in items for text in item.captions)
        return [item for item in items if self.drop_texts(item, "frequency", [
            text for text in item.captions if counts[text] > self.rules.frequency])]

    def first_only(self, rule, items, of):
        seen, left = set(), []
        for item in items:
            value = of(item)
            if value in seen:
                self.drop(item, rule)
            else:
                seen.add(value)
                left.append(item)
        return left

    def near_images(self, items):
        small = [likeness.thumbnail(item.image) for item in items]
        looks = np.array([likeness.look_hash(one) for one in small], np.uint64)
        tables, left = defaultdict(list), []
        for number, item in enumerate(items):
            values = likeness.look_tables(looks[number:number + 1])[0].tolist()
            earlier = sorted({other for value in values for other in tables[value]})
            for value in values:
                tables[value].append(number)
            pixels = np.frombuffer(small[number], np.uint8)[None]
            if any(bin(int(looks[number]) ^ int(looks[other])).count("1") <= self.rules.near_images.bits
                   and likeness.thumbnails_apart(np.frombuffer(small[other], np.uint8)[None], pixels)[0]
                   <= self.rules.near_images.apart for other in earlier):
                self.drop(item, "near_images")
            else:
                left.append(item)
        return left

    def near_texts(self, items):
        tables, left = defaultdict(list), []
        for item in items:
            near = []
            for text in item.captions:
                values = likeness.text_bands(text).tolist()
                earlier = {other for value in values for other in tables[value] if other != text}
                if any(likeness.texts_alike(other, text) >= self.rules.near_texts.alike for other in earlier):
                    near.append(text)
                for value in values:
                    tables[value].append(text)
            if self.drop_texts(item, "near_texts", near):
                left.append(item)
        return left
