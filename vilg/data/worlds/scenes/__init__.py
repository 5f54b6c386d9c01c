"""Seeded scenes of simple objects: images, Chinese captions, questions,
and a reader that checks what a model says or draws."""
from vilg.data.worlds.scenes.captioner import captions
from vilg.data.worlds.scenes.parser import parse_caption
from vilg.data.worlds.scenes.questioner import KINDS, answer_is_right, parse_question, questions
from vilg.data.worlds.scenes.reader import describes, read, satisfies
from vilg.data.worlds.scenes.renderer import render
from vilg.data.worlds.scenes.scene import SPLITS, Scene, sample_scene

__all__ = ["KINDS", "SPLITS", "Scene", "answer_is_right", "captions", "describes", "parse_caption", "parse_question",
           "questions", "read", "render", "sample_scene", "satisfies"]
