"""What the comparison of AR and NAR is written down as: Markdown, JSON, a plot, and strips of samples."""
from pathlib import Path
from typing import Any

from PIL import Image

from vilg import config as configs
from vilg.app import sheet
from vilg.evaluation.ar_nar import ARMS, BUDGETS, METRICS, ArNarConfig, Row
from vilg.evaluation.report import write_json
from vilg.run.build import RunConfig

TITLES = {"satisfied": "caption satisfied", "satisfied_unseen": "unseen", "best_of_8": "best of 8",
          "frechet": "Fréchet distance"}


def markdown(rows: list[Row], times: dict[str, float], config: ArNarConfig, command: str) -> str:
    """The table of figures, the table of seconds, and how both came to be."""
    lines = [f"| arm | trained for | schedule | steps | choice temperature | {' | '.join(TITLES.values())} |",
             "|" + "---|" * (5 + len(TITLES))]
    for row in rows:
        decoder = [str(value) for value in row.decoder.values()] or ["–"] * 3
        figures = [f"{mean:.3f} ± {spread:.3f}" for mean, spread in map(row.of, METRICS)]
        lines.append(f"| {' | '.join([ARMS[row.arm], BUDGETS[row.budget], *decoder, *figures])} |")
    columns = [f"{batch}.{kind}" for batch in config.batches for kind in ("plain", "guided")]
    titles = [f"batch {column.replace('.plain', '').replace('.guided', ', guidance')}" for column in columns]
    lines += ["", f"| seconds an image | steps | {' | '.join(titles)} |", "|" + "---|" * (2 + len(columns))]
    for arm, steps in dict.fromkeys(tuple(key.split(".")[:2]) for key in times):
        cells = [f"{times[f'{arm}.{steps}.{column}']:.4f}" for column in columns]
        lines.append(f"| {ARMS[arm]} | {steps} | {' | '.join(cells)} |")
    lines += ["", f"Mean ± standard deviation over seeds {', '.join(map(str, config.seeds))}; {config.count} held-out "
              f"captions a row, of each split; `{command}`. The Fréchet distance is taken in the features of a small "
              "network that was trained on scenes: it is not comparable with Inception FID. Seconds are medians of "
              f"{config.repeats} in one process, decoding of codes included, with the first seed's models."]
    return "\n".join(lines) + "\n"


def write(rows: list[Row], times: dict[str, float], run: RunConfig, config: ArNarConfig, output: Path, folder: Path,
          command: str) -> None:
    """Write ``ar_nar.md``, ``ar_nar.json``, ``images/ar_nar_samples.png`` and, where matplotlib is installed,
    ``images/ar_nar.png`` to ``folder``."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {f"seconds.{name}": value for name, value in times.items()}
    for row in rows:
        for metric in METRICS:
            figures[f"{row.name}.{metric}.mean"], figures[f"{row.name}.{metric}.std"] = row.of(metric)
    write_json(folder / "ar_nar.json", figures, command=command, table=configs.to_dict(config),
               config=configs.to_dict(run))
    (folder / "ar_nar.md").write_text(markdown(rows, times, config, command), encoding="utf-8")
    strips = [(f"{ARMS[row.arm]}, {BUDGETS[row.budget]}\n" + ", ".join(map(str, row.decoder.values())),
               _strip(output / f"seed{config.seeds[0]}" / f"{row.arm}_{row.budget}" / f"{row.name}.png"))
              for row in rows]
    sheet.table(strips, scale=1).save(folder / "images" / "ar_nar_samples.png")
    _plot(rows, times, config, folder / "images" / "ar_nar.png")


def _strip(path: Path) -> list[Image.Image]:
    strip = Image.open(path).convert("RGB")
    side = strip.height
    return [strip.crop((left, 0, left + side, side)) for left in range(0, strip.width, side)]


def _plot(rows: list[Row], times: dict[str, float], config: ArNarConfig, path: Path) -> None:
    """Caption satisfied against seconds an image, a panel a batch size, of the arms that had equal steps."""
    try:
        from matplotlib import figure
    except ImportError:
        return
    drawing = figure.Figure(figsize=(5 * len(config.batches), 4), layout="constrained")
    panels = drawing.subplots(1, len(config.batches), sharey=True, squeeze=False)[0]
    for batch, panel in zip(config.batches, panels):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in (row for row in rows if row.budget == "steps"):
            label = ", ".join([ARMS[row.arm], *(str(row.decoder[key]) for key in ("schedule", "choice_temperature")
                                                if row.decoder)])
            spent = times[f"{row.arm}.{row.decoder.get('steps', 'all')}.{batch}.plain"]
            lines.setdefault(label, []).append((spent, row.of("satisfied")[0]))
        for label, points in lines.items():
            panel.plot(*zip(*points), marker="o" if len(points) > 1 else "*", label=label)
        panel.set(title=f"batch {batch}", xlabel="seconds an image", xscale="log")
    panels[0].set_ylabel("caption satisfied")
    panels[-1].legend(fontsize="x-small")
    drawing.savefig(path, dpi=120)
