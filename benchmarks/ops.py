"""Every function of vilg.nn.functional against stock Paddle and torch, forward and backward, on the model's shapes.

    python benchmarks/ops.py                         all cores, in float32; about three minutes
    python benchmarks/ops.py --math bf16             ours with bf16 products against torch's bf16 autocast
    python benchmarks/ops.py --threads 1 --clock cpu on a busy machine

A backward starts from an operator that hands over the incoming gradient as it lies, since Paddle copies one that is
given to ``paddle.grad`` by its user, which happens once in a training step and not at every function.

Keys of --json: <function>_{forward,backward}_over_{torch,stock} (ours / theirs: below 1 is faster),
<function>_both_over_{torch,stock} (forward plus backward, which is what a training step pays) and
<function>_{forward,backward}_ms of ours.
"""
from collections.abc import Callable

import harness

SHAPES = {
    "linear": [(2176, 512), (512, 2048), (2048,)],
    "matmul": [(512, 32, 64), (512, 64, 128)],
    "layer_norm": [(2176, 512), (512,), (512,)],
    "softmax": [(16, 1024, 128)],
    "gelu": [(2176, 2048)],
    "silu": [(8, 128, 64, 64)],
    "group_norm": [(8, 128, 64, 64), (128,), (128,)],
    "conv2d": [(8, 64, 64, 64), (64, 64, 3, 3), (64,)],
    "cross_entropy": [(2048, 8192)],
    "linear_cross_entropy": [(2048, 512), (512, 8192), (8192,)],
}
"""Shapes of the differentiable arguments: 2 samples of 64 + 1024 tokens, width 512; 8 pictures of 64 × 64."""
CLASSES = 8192
REPETITIONS = 200
"""Repetitions a turn; slow functions have as many as begin in 0.1 s (--quick) or 0.4 s, three at least (stock one)."""
SETTLING = 5
"""Repetitions of ours and of torch that do not count. Both keep freed memory, and until that has settled some touch new
pages: torch's gradient of a cross-entropy takes 10 ms then and up to 370 before."""


def main() -> None:
    """Time all functions and print, or write, the ratios."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--math", choices=("fp32", "bf16"), default="fp32", help="arithmetic of ours and of torch")
    parser.add_argument("--only", nargs="+", choices=sorted(SHAPES), default=list(SHAPES), metavar="FUNCTION",
                        help=f"functions to time: {', '.join(SHAPES)}")
    options = parser.parse_args()
    mine = harness.Contestant("ours", ours, options, options.only, options.math, pause=harness.SHORT_PAUSE)
    peer = harness.Contestant("torch", torch, options, options.only, options.math, pause=harness.SHORT_PAUSE)
    default = harness.Contestant("stock", stock, options, options.only)
    contestants = [mine, peer, default]
    for contestant in contestants:
        contestant.wait()
    rounds, limit = (2, 0.1) if options.quick else (5, 0.4)
    figures = {}
    for function in options.only:
        both = dict.fromkeys(("ours", "torch", "stock"), 0.0)
        for direction in ("forward", "backward"):
            name = f"{function}_{direction}"
            for contestant in (mine, peer):
                contestant.time(name, 0, SETTLING)
            # Stock Paddle needs no settling, it touches its memory anew all the time; one turn does for a quick look.
            turns = [mine, peer] if options.quick else contestants
            seconds = harness.alternate(turns, name, rounds, REPETITIONS, limit=limit, least=3)
            if options.quick:
                seconds |= harness.alternate([default], name, 1, REPETITIONS, limit=limit)
            figures[f"{name}_ms"] = seconds["ours"] * 1e3
            for other in ("torch", "stock"):
                figures[f"{name}_over_{other}"] = seconds["ours"] / seconds[other]
            both = {who: total + seconds[who] for who, total in both.items()}
        for other in ("torch", "stock"):
            figures[f"{function}_both_over_{other}"] = both["ours"] / both[other]
    for contestant in contestants:
        contestant.close()
    harness.report(options, figures, math=options.math)


def _cases(only: list[str], functions: dict[str, Callable], tensor: Callable, like: Callable, deliver: Callable,
           gradients: Callable) -> dict:
    """Forward and backward of all functions; ``deliver(y, dy)`` is a scalar whose gradient for y is dy."""
    cases = {}
    for name in only:
        function = functions[name]
        arguments = [tensor(shape) for shape in SHAPES[name]]
        incoming = like(function(*arguments))

        def forward(function=function, arguments=arguments):
            return lambda: function(*arguments)

        def backward(function=function, arguments=arguments, incoming=incoming):
            end = deliver(function(*arguments), incoming)
            return lambda: gradients(end, arguments)

        cases[f"{name}_forward"], cases[f"{name}_backward"] = forward, backward
    return cases


def _paddle_cases(paddle, only: list[str], functions: dict[str, Callable]) -> dict:
    def tensor(shape):
        x = paddle.randn(shape)
        x.stop_gradient = False
        return x

    class Deliver(paddle.autograd.PyLayer):
        @staticmethod
        def forward(ctx, y, incoming):
            ctx.incoming = incoming
            return paddle.zeros([1])

        @staticmethod
        def backward(ctx, _):
            return ctx.incoming

    return _cases(only, functions, tensor, lambda y: paddle.randn(y.shape), Deliver.apply,
                  lambda end, arguments: paddle.grad([end], arguments))


def ours(threads: int, seed: int, only: list[str], math: str) -> dict:
    """The cases on vilg.nn.functional."""
    paddle = harness.prepare_ours(threads, seed, math)
    from vilg.nn import functional as f

    labels = paddle.randint(0, CLASSES, [SHAPES["cross_entropy"][0][0]])
    return _paddle_cases(paddle, only, {
        "linear": f.linear, "matmul": f.matmul, "layer_norm": f.layer_norm, "softmax": f.softmax, "gelu": f.gelu,
        "silu": f.silu, "group_norm": lambda x, w, b: f.group_norm(x, 32, w, b),
        "conv2d": lambda x, w, b: f.conv2d(x, w, b, 1, 1), "cross_entropy": lambda x: f.cross_entropy(x, labels),
        "linear_cross_entropy": lambda x, w, b: f.linear_cross_entropy(x, w, b, labels)})


def stock(threads: int, seed: int, only: list[str]) -> dict:
    """The cases on Paddle as it comes."""
    paddle = harness.prepare_stock(threads, seed)
    f = paddle.nn.functional
    labels = paddle.randint(0, CLASSES, [SHAPES["cross_entropy"][0][0]])
    return _paddle_cases(paddle, only, {
        "linear": f.linear, "matmul": paddle.matmul, "layer_norm": lambda x, w, b: f.layer_norm(x, x.shape[-1:], w, b),
        "softmax": f.softmax, "gelu": f.gelu, "silu": f.silu,
        "group_norm": lambda x, w, b: f.group_norm(x, 32, 1e-6, w, b),
        "conv2d": lambda x, w, b: f.conv2d(x, w, b, 1, 1),
        "cross_entropy": lambda x: f.cross_entropy(x, labels, reduction="none"),
        "linear_cross_entropy": lambda x, w, b: f.cross_entropy(f.linear(x, w, b), labels, reduction="none")})


def torch(threads: int, seed: int, only: list[str], math: str) -> dict:
    """The cases on torch; in bf16 under autocast, as its users would."""
    module = harness.prepare_torch(threads, seed)
    f = module.nn.functional
    labels = module.randint(0, CLASSES, [SHAPES["cross_entropy"][0][0]])
    functions = {
        "linear": lambda x, w, b: f.linear(x, w.T, b), "matmul": module.matmul,
        "layer_norm": lambda x, w, b: f.layer_norm(x, x.shape[-1:], w, b), "softmax": lambda x: f.softmax(x, -1),
        "gelu": f.gelu, "silu": f.silu, "group_norm": lambda x, w, b: f.group_norm(x, 32, w, b, 1e-6),
        "conv2d": lambda x, w, b: f.conv2d(x, w, b, 1, 1),
        "cross_entropy": lambda x: f.cross_entropy(x, labels, reduction="none"),
        "linear_cross_entropy": lambda x, w, b: f.cross_entropy(f.linear(x, w.T, b), labels, reduction="none")}

    def autocast(function):
        def run(*arguments):
            with module.autocast("cpu", module.bfloat16):
                return function(*arguments)
        return run

    if math == "bf16":
        functions = {name: autocast(function) for name, function in functions.items()}
    class Deliver(module.autograd.Function):
        @staticmethod
        def forward(ctx, y, incoming):
            ctx.incoming = incoming
            return module.zeros(1)

        @staticmethod
        def backward(ctx, _):
            return ctx.incoming, None

    return _cases(only, functions, lambda shape: module.randn(shape, requires_grad=True), module.randn_like,
                  Deliver.apply, lambda end, arguments: module.autograd.grad(end, arguments))


if __name__ == "__main__":
    main()
