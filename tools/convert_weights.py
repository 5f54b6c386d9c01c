"""Turn public weights of image tokenizers and of ERNIE-ViL 2.0 into a released folder of this project.

Reads PyTorch checkpoints (.ckpt, .pt, .pth, .pkl), Paddle's .pdparams and safetensors without PyTorch and without
running anything that the file asks to be run. A tokenizer's folder can stand as task.image_tokenizer in a config.
"""
import argparse
from typing import Any

from vilg import cli
from vilg.models.dual_encoder.preprocess import PREPROCESSINGS

EPILOG = """examples:
  python tools/convert_weights.py vqgan --checkpoint last.ckpt --output weights/vqgan_f8_8192
  python tools/convert_weights.py dvae --encoder encoder.pkl --decoder decoder.pkl --output weights/dvae
  python tools/convert_weights.py ernie-vil --checkpoint model.pdparams --vocabulary ernie_vil --output weights/base

Sizes (channels, levels, codes, quantizer) are read off the weights; only the side of the pictures has to be said
when it is not 256.
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="vqgan|dvae|ernie-vil")
    vqgan = kinds.add_parser("vqgan", help="a VQGAN with a plain or a Gumbel quantizer")
    vqgan.add_argument("--checkpoint", required=True, metavar="FILE", help="its checkpoint")
    dvae = kinds.add_parser("dvae", help="the public dVAE, which comes as two files")
    dvae.add_argument("--encoder", required=True, metavar="FILE", help="the encoder's weights")
    dvae.add_argument("--decoder", required=True, metavar="FILE", help="the decoder's weights")
    ernie = kinds.add_parser("ernie-vil", help="ERNIE-ViL 2.0 under PaddleNLP's or Baidu's names")
    ernie.add_argument("--checkpoint", required=True, metavar="FILE", help="its .pdparams or .safetensors")
    ernie.add_argument("--vocabulary", required=True, metavar="FOLDER", help="folder with its vocab.txt")
    ernie.add_argument("--preprocess", choices=sorted(PREPROCESSINGS), default="baidu",
                       help="how its images are cut and resized (default: %(default)s)")
    ernie.add_argument("--text-length", type=int, default=48, help="longest text in tokens (default: %(default)s)")
    ernie.add_argument("--text-eps", type=float, help="eps of the text tower's norms (default: 1e-12 for PaddleNLP's "
                                                      "names, 1e-5 for Baidu's, as their own code computes)")
    for kind in (vqgan, dvae):
        kind.add_argument("--image-size", type=int, default=256, help="side of its pictures (default: %(default)s)")
    for kind in (vqgan, dvae, ernie):
        kind.add_argument("--output", required=True, metavar="FOLDER", help="folder to write")
        kind.add_argument("--half", action="store_true", help="store weights in half precision, which halves the file")
    return parser.parse_args()


def read(args: argparse.Namespace) -> Any:
    """The tokenizer that the command line names."""
    from vilg.tokenizers.image.convert import import_dvae, import_vqgan

    if args.kind == "vqgan":
        return import_vqgan(args.checkpoint, args.image_size)
    return import_dvae(args.encoder, args.decoder, args.image_size)


def convert_ernie_vil(args: argparse.Namespace) -> None:
    """Write and describe the folder of a dual encoder."""
    from vilg import release
    from vilg.models.dual_encoder.convert import import_dual_encoder
    from vilg.release.kinds.dual_encoder import ReleasedDualEncoder
    from vilg.tokenizers.text.wordpiece import WordPieceTokenizer

    words = WordPieceTokenizer.from_folder(args.vocabulary)
    model = import_dual_encoder(args.checkpoint, args.text_eps)
    made = ReleasedDualEncoder(model, words, PREPROCESSINGS[args.preprocess], args.text_length)
    mark = release.write(args.output, "dual_encoder", made, dtype="float16" if args.half else None)
    image, text = model.config.image, model.config.text
    print(f"{args.output}: dual encoder, {image.image_size} pixels, {image.layers} and {text.layers} layers, vectors "
          f"of {model.config.vector_width}, text eps {text.norm_eps:g}, fingerprint {mark}")


def main() -> int:
    """Run the tool."""
    args = arguments()
    if args.kind == "ernie-vil":
        convert_ernie_vil(args)
        return 0
    from vilg import release

    tokenizer = read(args)
    mark = release.write(args.output, "image_tokenizer", tokenizer, dtype="float16" if args.half else None)
    rows, columns = tokenizer.grid
    print(f"{args.output}: {tokenizer.config.kind}, {tokenizer.image_size} pixels, {rows}×{columns} tokens of "
          f"{tokenizer.codebook_size}, fingerprint {mark}")
    return 0


if __name__ == "__main__":
    cli.run(main)
