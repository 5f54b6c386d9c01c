"""``python test.py`` beside the module, with PaddleHub installed: the shipped model through the hub's own loader."""
import base64
import io
import tempfile
import unittest
from pathlib import Path

import paddlehub
from PIL import Image

PROMPT = "一个红色的圆形"


class TestErnieVilG(unittest.TestCase):
    """The three ways into the module."""

    @classmethod
    def setUpClass(cls):
        cls.module = paddlehub.Module(directory=str(Path(__file__).resolve().parent))

    def test_generate_image(self):
        with tempfile.TemporaryDirectory() as folder:
            pictures = self.module.generate_image([PROMPT, PROMPT], topk=2, output_dir=folder)
            self.assertEqual(len(pictures), 4)
            self.assertEqual(len(list(Path(folder).glob("[0-9]*.png"))), 4)

    def test_run_cmd(self):
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["--text_prompts", PROMPT, "--topk", "1", "--output_dir", folder]
            self.assertEqual(len(self.module.run_cmd(arguments)), 1)

    def test_serving_method(self):
        first, = self.module.serving_method(PROMPT, topk=1)
        self.assertEqual(Image.open(io.BytesIO(base64.b64decode(first))).format, "PNG")

    def test_unknown_style(self):
        with self.assertRaisesRegex(ValueError, "style"):
            self.module.generate_image(PROMPT, style="石版画")


if __name__ == "__main__":
    unittest.main()
