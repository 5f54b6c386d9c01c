"""Scenes as training data: drawn as they are asked for, with what is said about them."""
from typing import Literal

import numpy as np

from vilg.config import configclass
from vilg.data.sample import Sample
from vilg.data.worlds.scenes import Scene, captions, parse_caption, questions, render, sample_scene
from vilg.data.worlds.scenes.constraints import Constraints
from vilg.data.worlds.scenes.lexicon import COLOUR_WORDS, SHAPE_WORDS


@configclass
class ScenesConfig:
    """Scenes drawn as training goes: seeds ``first`` to ``first + count - 1`` of a split, drawn at ``size`` pixels.

    ``kinds``: at least so many different colour–shape pairs in every scene (1 to 3); which words go with which object
    can only be learned where there are several. ``say`` prefers captions that give every object's place, or that set
    objects in relation; a scene of which nothing such was said keeps the captions that it has. ``wide`` scenes, of
    split train alone, show colours and shapes that are never tested; they teach that any colour goes with any shape.
    """

    kind: Literal["scenes"] = "scenes"
    split: Literal["train", "test", "unseen"] = "train"
    count: int = 100_000
    first: int = 0
    size: int = 64
    captions: int = 4
    questions: int = 5
    kinds: int = 1
    say: Literal["any", "places", "relations"] = "any"
    wide: bool = False
    repeat: int = 1

    def __post_init__(self):
        if min(self.count, self.size, self.captions, self.repeat) < 1 or min(self.first, self.questions) < 0:
            raise ValueError("count, size, captions and repeat are at least 1, first and questions at least 0")
        if not 1 <= self.kinds <= 3:
            raise ValueError(f"kinds is 1, 2 or 3 (a scene holds no more objects), not {self.kinds}")
        if self.kinds == 3 and self.split == "unseen":
            raise ValueError("kinds is at most 2 in split unseen, where every other scene is a pair of objects")
        if self.wide and self.split != "train":
            raise ValueError(f"wide scenes are for split train, not {self.split}: nothing judges their shapes")


class ScenesSource:
    """Scenes of one split as samples that carry their :class:`Scene`, its split, seed and tags as facts; see
    :class:`ScenesConfig`."""

    def __init__(self, config: ScenesConfig):
        self.config = config

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, index: int) -> Sample:
        seed = self.config.first + index
        scene = sample_scene(seed, self.config.split, self.config.kinds, self.config.wide)
        rng = np.random.default_rng([seed, 1])
        return Sample(f"scenes/{self.config.split}/{seed}", render(scene, self.config.size),
                      self._captions(scene, rng), questions(scene, rng, self.config.questions),
                      facts={"scene": scene, "split": self.config.split, "seed": seed, "tags": _tags(scene)})

    def _captions(self, scene: Scene, rng: np.random.Generator) -> list[str]:
        number = self.config.captions
        if self.config.say == "any":
            return captions(scene, rng, number)
        texts = captions(scene, rng, 4 * number)
        return ([text for text in texts if self._says(parse_caption(text))] or texts)[:number]

    def _says(self, claims: Constraints) -> bool:
        if self.config.say == "relations":
            return bool(claims.relations)
        return all(group.cell for group in claims.groups)


def _tags(scene: Scene) -> list[str]:
    """What is there, a colour with its shape each, once."""
    return list(dict.fromkeys(f"{COLOUR_WORDS[item.colour][0]}的{SHAPE_WORDS[item.shape][0]}"
                              for item in scene.objects))
