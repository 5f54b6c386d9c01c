"""Measure a released model, or anybody's output: this project's own tasks, retrieval, and the paper's tables.

  python tools/evaluate.py scenes --model ernie_vilg_tiny --count 500 --seed 0 --json scenes.json
  python tools/evaluate.py emoji --model ernie_vilg_tiny --data data/emoji
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
import itertools
from collections.abc import Iterator
from pathlib import Path

from vilg import cli
from vilg.data.benchmarks.retrieval import BENCHMARKS
from vilg.generation.sampling import WAYS
from vilg.runtime import CPU_MATHS


def shared(model: str) -> argparse.ArgumentParser:
    """What the tasks share; made anew for those of another ``model``, as parsers share the defaults of a parent."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model", default=model, help="name in model_zoo/ or a model folder (%(default)s)")
    common.add_argument("--seed", type=int, default=0, help="of the scenes and of the sampling (%(default)s)")
    common.add_argument("--cpu-math", choices=CPU_MATHS, help="precision of products on a CPU")
    common.add_argument("--device", help="cpu, gpu:0 …")
    common.add_argument("--json", metavar="FILE", help="write the figures as one flat JSON object")
    return common


def parse() -> argparse.Namespace:
    common, comparing = shared("ernie_vilg_tiny"), shared("ernie_vil_tiny")
    drawing = argparse.ArgumentParser(add_help=False)
    cli.add_settings(drawing, *WAYS)
    emoji_data = argparse.ArgumentParser(add_help=False)
    emoji_data.add_argument("--data", default="data/emoji",
                            help="folder written by tools/prepare_emoji.py (%(default)s)")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    scenes = tasks.add_parser("scenes", parents=[common, drawing], help="truthful drawings, captions and answers")
    scenes.add_argument("--count", type=int, default=500, help="scenes a split (%(default)s)")
    scenes.add_argument("--best-of", type=int, default=8,
                        help="pictures a caption for the re-ranked figure (%(default)s)")
    scenes.add_argument("--trained-on", metavar="CONFIG", help="run config whose scenes the model learned from, such "
                        "as configs/vilg/tiny/pictures.yaml; they take a minute to make")
    emoji = tasks.add_parser("emoji", parents=[common, drawing, emoji_data], help="recognisable emoji, exact names")
    emoji.add_argument("--count", type=int, help="emoji at most (all)")
    tokenizer = tasks.add_parser("tokenizer", parents=[common, emoji_data], help="what the image tokenizer keeps")
    tokenizer.add_argument("--count", type=int, default=500, help="scenes (%(default)s)")
    retrieval = tasks.add_parser("retrieval", parents=[comparing], help="texts find images, images find texts")
    retrieval.add_argument("--format", choices=["worlds", *BENCHMARKS], default="worlds",
                           help="the project's own worlds, or a public benchmark's files (%(default)s)")
    retrieval.add_argument("--data", help="folder of tools/prepare_styles.py, or of the benchmark's files")
    retrieval.add_argument("--count", type=int, default=1000, help="scenes (%(default)s)")
    retrieval.add_argument("--predictions", metavar="FILE", help="with --format: also write the ten best of every text")
    retrieval.add_argument("--score", metavar="FILE", help="with --format: score this file of predictions, no model")
    zero_shot = tasks.add_parser("zero-shot", parents=[comparing], help="classes told by their names")
    zero_shot.add_argument("--data", required=True, help="folder with label_cn.txt and test/000 …")
    zero_shot.add_argument("--templates", metavar="FILE", help="prompts, one a line, {} for the name (the model's own)")
    zero_shot.set_defaults(count=None)
    add_coco(tasks, [common, drawing])
    add_captions(tasks, [common])
    add_fmiqa(tasks, [common])
    add_human(tasks)
    add_tables(tasks)
    arguments = parser.parse_args()
    if arguments.task == "retrieval":
        public = arguments.format != "worlds"
        if public and not arguments.data or not public and (arguments.predictions or arguments.score):
            parser.error("--format of a public benchmark wants --data, and --predictions and --score want it")
    if getattr(arguments, "seed", 0) < 0 or getattr(arguments, "best_of", 1) < 1 or (
            getattr(arguments, "count", None) is not None and arguments.count < 1):
        parser.error("--count and --best-of are at least 1 and --seed not negative")
    return arguments


def add_coco(tasks, parents) -> None:
    coco = tasks.add_parser("coco", parents=parents, help="pictures from MS-COCO's captions against real ones")
    coco.add_argument("--data", required=True, metavar="FOLDER",
                      help="MS-COCO: the images of its val2014 are the reference, unless --reference names another")
    coco.add_argument("--weights", required=True, metavar="FILE", help="Inception-v3 in its public format")
    coco.add_argument("--protocol", required=True, help="dm-gan, which the paper names, or tf")
    coco.add_argument("--resize", help="for tf: pytorch-fid, torch-fidelity or clean-fid (pytorch-fid)")
    source = coco.add_mutually_exclusive_group(required=True)
    source.add_argument("--captions", metavar="FILE", help='lines of {"image_id": 42, "caption": "…", "source": "…"}')
    source.add_argument("--pictures", metavar="FOLDER", help="score these pictures, whoever drew them")
    coco.add_argument("--best-of", type=int, default=1, help="pictures a caption; the best is kept (%(default)s)")
    coco.add_argument("--judge", metavar="MODEL", help="dual encoder that chooses among --best-of, as the paper's does "
                      "(the drawing model by P(text|image)), and that gives clip_score; name or folder")
    coco.add_argument("--count", type=int, help="captions at most (all)")
    coco.add_argument("--reference", metavar="FILE", help="another folder of images, or an .npz of mu and sigma")
    coco.add_argument("--save-reference", metavar="FILE", help="write the reference's mu and sigma there")
    coco.add_argument("--kid-subset", type=int, default=1000, help="images a subset of KID (%(default)s)")
    coco.add_argument("--output", default="runs/coco", metavar="FOLDER",
                      help="pictures and features are kept there; the same command goes on (%(default)s)")
    coco.set_defaults(run=run_coco)


def add_captions(tasks, parents) -> None:
    captions = tasks.add_parser("captions", parents=parents, help="captions of AIC-ICC or COCO-CN")
    captions.add_argument("--format", required=True, help="aic-icc or coco-cn")
    captions.add_argument("--data", required=True, metavar="FOLDER", help="the data set as it is unpacked")
    captions.add_argument("--split", help="aic-icc: train, validation; coco-cn: train, val, test (what papers score)")
    captions.add_argument("--references", default="human-written",
                          help="coco-cn: human-written or manually-translated (%(default)s)")
    captions.add_argument("--cut", help="aic, coco-cn, jieba or characters (the data set's own; for a model on coco-cn "
                          "jieba, since models write uncut text). Characters are always scored too")
    captions.add_argument("--predictions", metavar="FILE",
                          help="score these: a JSON list or lines of image_id and caption, or of id, tab, caption")
    captions.add_argument("--output", default="runs/captions", metavar="FOLDER",
                          help="the model's captions are kept there; the same command goes on (%(default)s)")
    captions.set_defaults(run=run_captions)


def add_fmiqa(tasks, parents) -> None:
    fmiqa = tasks.add_parser("fmiqa", parents=parents, help="answers to FM-IQA's questions, and a kit for judges")
    fmiqa.add_argument("--data", required=True, metavar="FOLDER", help="FM-IQA.json, with MS-COCO's val2014 beside it")
    fmiqa.add_argument("--split", default="val", help="train or val (%(default)s)")
    fmiqa.add_argument("--count", type=int, help="questions, chosen by --seed; the paper judges 200 (all)")
    fmiqa.add_argument("--answers", metavar="FILE", help='judge these: {"question_id", "answer"} in a list or in lines')
    fmiqa.add_argument("--name", help="of whoever answered, in the key and the tables (the model's, or the file's)")
    fmiqa.add_argument("--raters", type=int, default=3, help="pages (%(default)s)")
    fmiqa.add_argument("--output", default="runs/fmiqa", metavar="FOLDER", help="(%(default)s)")
    fmiqa.set_defaults(run=run_fmiqa)


def add_human(tasks) -> None:
    human = tasks.add_parser("human", help="a page a rater, and the report").add_subparsers(dest="step", required=True)
    make = human.add_parser("make", help="one offline HTML file a rater, and the key, which stays with you")
    make.add_argument("--kind", required=True, help="images, captions or answers")
    make.add_argument("--items", required=True, metavar="FILE",
                      help='lines of {"item", "system", "image", "text"}, and "question" for answers')
    make.add_argument("--raters", type=int, default=3, help="pages (%(default)s)")
    make.add_argument("--seed", type=int, default=0, help="of orders, repeats and known answers (%(default)s)")
    make.add_argument("--output", required=True, metavar="FOLDER", help="rater_1.html … and key.json are written there")
    make.set_defaults(run=run_human_make, json=None)
    report = human.add_parser("report", help="means, intervals and agreement of what raters exported")
    report.add_argument("--key", required=True, metavar="FILE", help="the kit's key.json")
    report.add_argument("ratings", nargs="+", metavar="RATINGS", help="files that the pages exported, one a rater")
    report.add_argument("--json", metavar="FILE", help="write the figures as one flat JSON object")
    report.set_defaults(run=run_human_report)


def add_tables(tasks) -> None:
    tables = tasks.add_parser("tables", help="the paper's tables 1 to 7, in Markdown")
    tables.add_argument("--results", required=True, metavar="FOLDER", help="JSON files that --json wrote")
    tables.add_argument("--output", metavar="FILE", help="(tables.md in that folder)")
    tables.set_defaults(run=run_tables, json=None)


def run_coco(arguments: argparse.Namespace) -> None:
    from vilg.app import pipeline
    from vilg.data.benchmarks.coco import image_files, read_prompts
    from vilg.evaluation import coco, features

    protocol, network = features.load_protocol(arguments.protocol, arguments.resize, arguments.weights)
    output = Path(arguments.output)
    cli.check_folder(output, "--output")
    prompts = read_prompts(arguments.captions) if arguments.captions else None
    files = image_files(arguments.pictures) if arguments.pictures else []
    reference = coco.find_reference(arguments.reference or arguments.data, network, protocol, output / "features")
    if arguments.save_reference:
        features.save_reference(arguments.save_reference, reference, protocol)
    drawn_by, judge = arguments.pictures, None
    drawn = f"given as {arguments.pictures}"
    if prompts:
        model = load(arguments)
        model.use_sampling(**cli.settings_given(arguments, *WAYS))
        judge = pipeline.load_encoder(arguments.judge) if arguments.judge else None
        files = coco.draw_prompts(model, prompts, output, arguments.best_of, arguments.seed, arguments.count, judge)
        drawn_by = model.name
        drawn = (f"drawn by {model.name} from {prompts.digest}, best of {arguments.best_of}"
                 f"{f' by {judge.name} {judge.fingerprint[:12]}' if judge else ''}, seed {arguments.seed}")
    found = features.image_features(files, network, protocol, output / "features", "features")
    scores = [coco.score_images(found, reference, protocol, drawn, arguments.kid_subset)]
    scores += [coco.text_image_score(judge, prompts, files, drawn)] if judge else []
    show(arguments, itertools.chain(*scores), task="coco",
         drawn_by=drawn_by, protocol=f"{protocol.name} ({protocol.resize})", images=len(found.pool),
         best_of=arguments.best_of, seed=arguments.seed)


def run_captions(arguments: argparse.Namespace) -> None:
    from vilg.data.benchmarks.files import read_predictions
    from vilg.evaluation import captions

    cut = arguments.cut or captions.usual_cut(arguments.format, comes_cut=bool(arguments.predictions))
    images = captions.read_benchmark(arguments.format, arguments.data, arguments.split, cut, arguments.references)
    if arguments.predictions:
        by, said = arguments.predictions, read_predictions(arguments.predictions, images.key)
    else:
        cli.check_folder(arguments.output, "--output")
        model = load(arguments)
        by, said = model.name, captions.describe(model, images, Path(arguments.output))
    scores = captions.score_predictions(images, said, cut)
    show(arguments, captions.flat_scores(scores, images), task="captions", format=arguments.format, described_by=by,
         images=len(images.references), cuts=" ".join(scores))


def run_fmiqa(arguments: argparse.Namespace) -> None:
    from vilg.data.benchmarks.fmiqa import read_fmiqa
    from vilg.evaluation import fmiqa
    from vilg.evaluation.human.kit import make_kit

    output = Path(arguments.output)
    cli.check_folder(output, "--output")
    questions = fmiqa.sample_questions(read_fmiqa(arguments.data, arguments.split), arguments.count, arguments.seed)
    if arguments.answers:
        name, answers = Path(arguments.answers).stem, fmiqa.read_answers(arguments.answers, questions)
    else:
        model = load(arguments)
        name, answers = model.name, fmiqa.answer_questions(model, questions)
        fmiqa.write_answers(output / "answers.jsonl", answers)
    items = fmiqa.turing_items(questions, answers, arguments.name or name)
    make_kit(items, "answers", output / "kit", arguments.raters, arguments.seed)
    print(f"{len(questions)} questions; {arguments.raters} pages and the key are in {output / 'kit'}")


def run_human_make(arguments: argparse.Namespace) -> None:
    from vilg.evaluation.human.kit import make_kit, read_items

    cli.check_folder(arguments.output, "--output")
    key = make_kit(read_items(arguments.items, arguments.kind), arguments.kind, arguments.output, arguments.raters,
                   arguments.seed)
    print(f"{len(key['items'])} items, {arguments.raters} pages in {arguments.output}; keep its key.json from "
          "the raters")


def run_human_report(arguments: argparse.Namespace) -> None:
    from vilg.evaluation.human import report

    key = report.read_key(arguments.key)
    scores = report.signed_scores(key, report.read_ratings(arguments.ratings, key))
    show(arguments, scores, task="human", kind=key["kind"])


def run_tables(arguments: argparse.Namespace) -> None:
    from vilg.evaluation.files import write_whole
    from vilg.evaluation.tables import markdown, read_results

    output = arguments.output or Path(arguments.results) / "tables.md"
    cli.check_file(output, "--output")
    text = markdown(read_results(arguments.results))
    write_whole(output, text.encode())
    print(text, end="")


def load(arguments: argparse.Namespace):
    from vilg.app import pipeline

    return pipeline.load(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)


def show(arguments: argparse.Namespace, scores, **context) -> None:
    from vilg.evaluation.report import signed_figures, write_json

    figures = signed_figures(scores)
    if arguments.json:
        write_json(arguments.json, figures, **context)


def main() -> int:
    arguments = parse()
    said = vars(arguments)
    for option in ("json", "predictions") if arguments.task == "retrieval" else ("json",):
        if said.get(option):
            cli.check_file(said[option], f"--{option}")
    if "run" in said:
        return arguments.run(arguments)
    from vilg.evaluation.report import write_json

    name, measured = (scored if said.get("score") else dual_encoder if arguments.task in ("retrieval", "zero-shot")
                      else drawer)(arguments, said)
    figures = {}
    for key, value in measured:
        figures[key] = value
        print(f"{key:28s} {value:.4f}", flush=True)
    if arguments.json:
        write_json(arguments.json, figures, task=arguments.task, model=name, seed=arguments.seed,
                   count=arguments.count or "default", best_of=said.get("best_of", "none"),
                   trained_on=said.get("trained_on") or "not said", data=said.get("data") or "none",
                   format=said.get("format", "none"), cpu_math=arguments.cpu_math or "default")
    return 0


def drawer(arguments: argparse.Namespace, said: dict) -> tuple[str, Iterator[tuple[str, float]]]:
    """Name and figures of a model that draws."""
    from vilg.app import pipeline
    from vilg.evaluation.emoji import emoji_figures
    from vilg.evaluation.scenes import scenes_figures
    from vilg.evaluation.tokenizer import tokenizer_figures

    model = pipeline.load(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)
    if arguments.task != "tokenizer":
        model.use_sampling(**cli.settings_given(arguments, *WAYS))
    found = {"scenes": lambda: scenes_figures(model, said["count"], said["seed"], said["best_of"], said["trained_on"]),
             "emoji": lambda: emoji_figures(model, said["data"], said["seed"], said["count"]),
             "tokenizer": lambda: tokenizer_figures(model, said["data"], said["seed"], said["count"])}
    return model.name, found[arguments.task]()


def dual_encoder(arguments: argparse.Namespace, said: dict) -> tuple[str, Iterator[tuple[str, float]]]:
    """Name and figures of a model that compares texts and images."""
    from vilg.app import pipeline
    from vilg.evaluation.matching import matching_figures
    from vilg.evaluation.retrieval import public_figures
    from vilg.evaluation.zero_shot import zero_shot_figures

    model = pipeline.load_encoder(arguments.model, device=arguments.device, cpu_math=arguments.cpu_math)
    if arguments.task == "zero-shot":
        return model.name, zero_shot_figures(model, arguments.data, arguments.templates)
    if arguments.format != "worlds":
        return model.name, public_figures(model, arguments.data, BENCHMARKS[arguments.format], arguments.predictions)
    return model.name, matching_figures(model, arguments.data, arguments.count, arguments.seed)


def scored(arguments: argparse.Namespace, said: dict) -> tuple[str, Iterator[tuple[str, float]]]:
    """Name and figures of predictions that stand in a file."""
    from vilg.evaluation.retrieval import prediction_figures

    return said["score"], prediction_figures(said["score"], arguments.data, BENCHMARKS[arguments.format])


if __name__ == "__main__":
    cli.run(main)
