"""coco: the distance of pictures that are drawn from MS-COCO's captions to real ones."""
import argparse
import itertools
from pathlib import Path

from evaluations.common import load, show_signed
from vilg import cli
from vilg.generation.sampling import WAYS


def add(tasks, common: argparse.ArgumentParser, drawing: argparse.ArgumentParser) -> None:
    """Offer the command."""
    coco = tasks.add_parser("coco", parents=[common, drawing],
                            help="pictures from MS-COCO's captions against real ones")
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
    show_signed(arguments, itertools.chain(*scores), task="coco",
         drawn_by=drawn_by, protocol=f"{protocol.name} ({protocol.resize})", images=len(found.pool),
         best_of=arguments.best_of, seed=arguments.seed)
