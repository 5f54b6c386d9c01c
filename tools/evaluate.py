"""Measure a released model, or anybody's output: this project's own tasks, retrieval, and the paper's tables.

  python tools/evaluate.py scenes --model ernie_vilg_tiny --count 500 --seed 0 --json scenes.json
  python tools/evaluate.py emoji --model ernie_vilg_tiny --data data/emoji
  python tools/evaluate.py styles --model ernie_vilg_styles --data data/styles --sheet styles.png --json styles.json
  python tools/evaluate.py tokenizer --model ernie_vilg_tiny --data data/emoji
  python tools/evaluate.py retrieval --model ernie_vil_tiny --data data/styles --json retrieval.json
  python tools/evaluate.py retrieval --format coco-cn --data coco_cn --predictions predictions.jsonl
  python tools/evaluate.py zero-shot --model ernie_vil_tiny --data cifar-10
  python tools/evaluate.py coco --data coco --captions zh.jsonl --weights inception.pth --protocol dm-gan --best-of 60
  python tools/evaluate.py coco --data coco --pictures drawn --weights inception.pth --protocol tf
  python tools/evaluate.py captions --format aic-icc --data aic --predictions said.json
  python tools/evaluate.py fmiqa --data coco --model ernie_vilg_tiny --count 200 --output runs/fmiqa
  python tools/evaluate.py human make --kind images --items items.jsonl --output runs/kit
  python tools/evaluate.py human report --key runs/kit/key.json ratings_*.json --json results/people.json
  python tools/evaluate.py tables --results results

scenes     captions and scenes of other seeds than training's, judged by the scene reader: t2i_single, t2i_best_of_8,
           i2t, vqa, each again with _unseen for combinations that never appear in training's scenes. With
           --trained-on also i2t_new and vqa_new, of the scenes that training did not happen to show as well
           (scenes_new is their share: there are few different scenes of one object)
emoji      t2i_nearest, t2i_nearest_pixels: is the picture drawn for a name nearest to that emoji's among all;
           i2t_exact: is the name written for a picture exactly the emoji's
styles     on cells (a thing in a style) that were trained, and that never were: t2i_cell_seen, t2i_concept_unseen,
           t2i_style_unseen: what the drawing is nearest to among all pictures of the world; i2t_name_seen,
           i2t_name_unseen, i2t_style: exact answers to 这是什么？ and 什么风格？; each with its chance
tokenizer  psnr, ssim on held-out scenes and on emoji, and the share of codes in use
retrieval  of a dual encoder: recall at 1 from text to image (t2i) and back (i2t), each with its chance. On held-out
           scenes and, with --data, on the styles world: scenes_t2i_r1, cells_t2i_r1, style_t2i_r1, concepts_t2i_r1 …;
           calibration_error, and no_match_refused: queries that are refused, rightly, as nothing matches them, where
           5 % are wrongly. With --format on the files of a public benchmark: t2i_r1, t2i_r5, t2i_r10, t2i_mean_recall …
zero-shot  accuracy of classes told by their names, on a folder in ELEVATER's layout: label_cn.txt, test/000, test/001 …
coco       FID, KID, Inception Score, precision and recall of pictures drawn from Chinese captions of MS-COCO
captions   BLEU, METEOR, ROUGE-L and CIDEr on AIC-ICC and COCO-CN, by words and by characters
fmiqa      answers to FM-IQA's questions, in a kit for judges
human      a page a rater, and the report of what they exported
tables     the paper's tables 1 to 7 from the JSON files of the others
docs/evaluation.md says what each needs.
"""
import argparse

from evaluations import captions, coco, matching, own, people, tables
from evaluations.common import common_options, drawing_options
from vilg import cli


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    common, drawing = common_options("ernie_vilg_tiny"), drawing_options()
    own.add(tasks, common, drawing)
    matching.add(tasks)
    coco.add(tasks, common, drawing)
    captions.add(tasks, common)
    people.add(tasks, common)
    tables.add(tasks)
    arguments = parser.parse_args()
    refusal = matching.refusal(arguments) if arguments.task == "retrieval" else None
    if refusal:
        parser.error(refusal)
    if getattr(arguments, "seed", 0) < 0 or getattr(arguments, "best_of", 1) < 1 or (
            getattr(arguments, "count", None) is not None and arguments.count < 1):
        parser.error("--count and --best-of are at least 1 and --seed not negative")
    return arguments


def main() -> int:
    arguments = parse()
    if arguments.json:
        cli.check_file(arguments.json, "--json")
    arguments.run(arguments)
    return 0


if __name__ == "__main__":
    cli.run(main)
