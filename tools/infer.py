"""Draw pictures from Chinese text, describe pictures, and answer questions about them.

  python tools/infer.py text2image "一个红色的圆形" "左边是蓝色的方块，右边是绿色的星星" --num-images 4 --best-of 8
  python tools/infer.py image2text photo.png another.png
  python tools/infer.py vqa photo.png --question "图里有几个图形？"
  python tools/infer.py complete half.png --text "猫脸" --known-rows 4
  python tools/infer.py demo --output demo

Every PNG carries prompt, seed, settings and model in its metadata; `--json FILE` writes one JSON line a result.
"""
import argparse
from pathlib import Path

from vilg import cli
from vilg.generation.sampling import WAYS
from vilg.runtime import CPU_MATHS


IMAGES = "image files, or folders of them; one that cannot be read costs its own result alone"


def parse() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default="ernie_vilg_tiny", help="name in model_zoo/ or a model folder (%(default)s)")
    common.add_argument("--output", default="output", help="folder for pictures (%(default)s)")
    common.add_argument("--seed", type=int, default=0, help="the same seed draws the same picture (%(default)s)")
    common.add_argument("--json", metavar="FILE", help="also write one JSON line a result; - for standard output")
    common.add_argument("--cpu-math", choices=CPU_MATHS, help="precision of products on a CPU")
    common.add_argument("--device", help="cpu, gpu:0 … (the first GPU when Paddle has one, else the CPU)")
    drawing = argparse.ArgumentParser(add_help=False)
    drawing.add_argument("--num-images", type=int, default=1, help="pictures a prompt (%(default)s)")
    drawing.add_argument("--best-of", type=int, help="draw this many and keep the best, by P(text|image) or by --judge")
    drawing.add_argument("--judge", metavar="MODEL", help="dual encoder that chooses among --best-of; name or folder")
    cli.add_settings(drawing, *WAYS)
    drawing.add_argument("--path", choices=["two_stage", "end_to_end"], default="two_stage",
                         help="decode codes, or the hidden vectors by the reconstructor (%(default)s)")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    draw = tasks.add_parser("text2image", parents=[common, drawing], help="draw pictures from text")
    draw.add_argument("texts", nargs="+", help="what to draw, in Chinese")
    describe = tasks.add_parser("image2text", parents=[common], help="describe pictures")
    describe.add_argument("images", nargs="+", help=IMAGES)
    ask = tasks.add_parser("vqa", parents=[common], help="answer questions about pictures")
    ask.add_argument("images", nargs="+", help=IMAGES)
    ask.add_argument("--question", action="append", required=True, help="may be given several times")
    complete = tasks.add_parser("complete", parents=[common, drawing], help="keep the top of a picture, draw the rest")
    complete.add_argument("image")
    complete.add_argument("--text", required=True)
    complete.add_argument("--known-rows", type=int, help="rows of tokens to keep, from the top")
    complete.add_argument("--known-mask", metavar="PNG",
                          help="picture whose white parts are kept, black ones drawn anew")
    sheet = tasks.add_parser("demo", parents=[common], help="a contact sheet of pictures, captions and answers")
    sheet.add_argument("--beside", metavar="MODEL", help="another model, which draws and describes the scenes too")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.json not in (None, "-"):
        cli.check_file(arguments.json, "--json")
    if arguments.task in ("text2image", "complete", "demo"):
        cli.check_folder(arguments.output, "--output")
    # Paddle loads here, after --help and usage errors.
    from vilg.app import demo, image_files as gallery, inputs, pipeline

    model = pipeline.load(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)
    output, files = Path(arguments.output), None
    if arguments.task in ("text2image", "complete"):
        settings = {name: getattr(arguments, name) for name in ("num_images", "seed", "best_of", "judge", "path")}
        settings |= cli.settings_given(arguments, *WAYS)
        if arguments.task == "complete":
            settings |= {"known_image": arguments.image, "known_rows": arguments.known_rows,
                         "known_mask": arguments.known_mask}
        texts = arguments.texts if arguments.task == "text2image" else [arguments.text]
        drawn = model.text_to_image(texts, progress=True, **settings)
        results = gallery.write_pictures(texts, drawn, output)
    elif arguments.task == "image2text":
        files = inputs.read_files(arguments.images, model.image_tokenizer.image_size)
        texts = model.image_to_text(list(files.images.values()))
        results = [{"image": image, "text": text} for image, text in zip(files.images, texts)]
    elif arguments.task == "vqa":
        files = inputs.read_files(arguments.images, model.image_tokenizer.image_size)
        pairs = [(image, question) for image in files.images for question in arguments.question]
        answers = model.answer([files.images[image] for image, _ in pairs], [question for _, question in pairs])
        results = [{"image": image, "question": question, "answer": answer}
                   for (image, question), answer in zip(pairs, answers)]
    else:
        beside = arguments.beside and pipeline.load(arguments.beside, arguments.device, arguments.cpu_math)
        results = demo.write(model, output, arguments.seed, beside)
    cli.report(results, arguments.json)
    if files is not None:
        files.refuse_broken()
    return 0


if __name__ == "__main__":
    cli.run(main)
