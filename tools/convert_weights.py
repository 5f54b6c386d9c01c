"""Turn public image-tokenizer weights into a tokenizer folder of this project.

Reads PyTorch checkpoints (.ckpt, .pt, .pth, .pkl) and safetensors without PyTorch and without running anything that
the file asks to be run. The folder can stand as task.image_tokenizer in a config.
"""
import argparse

from vilg import cli, release
from vilg.tokenizers.image.base import ImageTokenizer
from vilg.tokenizers.image.convert import import_dvae, import_vqgan

EPILOG = """examples:
  python tools/convert_weights.py vqgan --checkpoint last.ckpt --output weights/vqgan_f8_8192
  python tools/convert_weights.py dvae --encoder encoder.pkl --decoder decoder.pkl --output weights/dvae

Sizes (channels, levels, codes, quantizer) are read off the weights; only the side of the pictures has to be said
when it is not 256.
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="vqgan|dvae")
    vqgan = kinds.add_parser("vqgan", help="a VQGAN with a plain or a Gumbel quantizer")
    vqgan.add_argument("--checkpoint", required=True, metavar="FILE", help="its checkpoint")
    dvae = kinds.add_parser("dvae", help="the public dVAE, which comes as two files")
    dvae.add_argument("--encoder", required=True, metavar="FILE", help="the encoder's weights")
    dvae.add_argument("--decoder", required=True, metavar="FILE", help="the decoder's weights")
    for kind in (vqgan, dvae):
        kind.add_argument("--output", required=True, metavar="FOLDER", help="folder to write")
        kind.add_argument("--image-size", type=int, default=256, help="side of its pictures (default: %(default)s)")
        kind.add_argument("--half", action="store_true", help="store weights in half precision, which halves the file")
    return parser.parse_args()


def read(args: argparse.Namespace) -> ImageTokenizer:
    """The tokenizer that the command line names."""
    if args.kind == "vqgan":
        return import_vqgan(args.checkpoint, args.image_size)
    return import_dvae(args.encoder, args.decoder, args.image_size)


def main() -> int:
    """Run the tool."""
    args = arguments()
    tokenizer = read(args)
    mark = release.write(args.output, "image_tokenizer", tokenizer, dtype="float16" if args.half else None)
    rows, columns = tokenizer.grid
    print(f"{args.output}: {tokenizer.config.kind}, {tokenizer.image_size} pixels, {rows}×{columns} tokens of "
          f"{tokenizer.codebook_size}, fingerprint {mark}")
    return 0


if __name__ == "__main__":
    cli.run(main)
