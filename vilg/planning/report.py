"""A plan as a table to read and as a picture."""
from PIL import Image, ImageDraw

from vilg.planning.drawing import REACHED, Drawing
from vilg.planning.plan import FRAGMENTED, GB, Plan

COLOURS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0"]
WIDTH, BAR, LINE, MARGIN = 900, 60, 18, 20


def table(plan: Plan) -> str:
    """The plan as lines of text."""
    fleet = plan.devices
    lines = [f"{plan.parameters / 1e9:.3f} B parameters on {fleet.count} devices of {fleet.memory:.0f} GB, "
             f"{plan.micro_batch} pairs a device and micro-batch, accumulate_steps {plan.accumulate_steps}", "",
             f"{'memory of one device':44s} {'GB':>8s}"]
    lines += [f"  {name:42s} {value / GB:8.2f}" for name, value in plan.memory.items() if value >= 0.005 * GB]
    verdict = "fits" if plan.fits else f"does NOT fit ({FRAGMENTED:.0%} is left for fragmentation)"
    lines += [f"  {'together':42s} {plan.total_bytes / GB:8.2f}   {verdict}",
              f"{'host memory for one device':44s} {plan.host_bytes / GB:8.2f}",
              f"{'exchanged with other devices, a step':44s} {plan.exchanged_bytes / GB:8.2f}",
              f"{'exchanged within a model, a step':44s} {plan.node_bytes / GB:8.2f}",
              f"{'moved between device and host, a step':44s} {plan.host_traffic_bytes / GB:8.2f}", "",
              f"{plan.flops_per_token / 1e9:.2f} GFLOP a token, {plan.tokens_per_step / 1e6:.2f} M tokens a step",
              f"{plan.step_seconds:.2f} s a step at {fleet.peak:.0f} TFLOP/s × {fleet.efficiency:.0%} and "
              f"{fleet.bandwidth:.0f} GB/s: {plan.days:.1f} days, {plan.mfu:.1%} MFU", "",
              f"{'made layer by layer, one device takes at most':44s} {plan.start.init_peak / GB:8.2f}",
              f"{'a checkpoint, all ranks together':44s} {plan.start.checkpoint / GB:8.2f}   "
              f"{plan.start.checkpoint_seconds:.1f} s to write in the background at {fleet.storage:g} GB/s a device",
              f"{'read to start again, all ranks together':44s} {plan.start.restart_read / GB:8.2f}   "
              f"{plan.start.restart_seconds:.1f} s"]
    return "\n".join(lines + [f"note: {note}" for note in plan.notes])


def picture(plan: Plan) -> Image.Image:
    """One device's memory as a stacked bar with its legend; the line marks what the device has."""
    parts = {name: value / GB for name, value in plan.memory.items() if value >= 0.005 * GB}
    scale = (WIDTH - 2 * MARGIN) / max(sum(parts.values()), plan.devices.memory) / 1.02
    image = Image.new("RGB", (WIDTH, 3 * MARGIN + BAR + LINE * (len(parts) + 2)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 4), f"{plan.parameters / 1e9:.2f} B parameters, {plan.devices.count} devices: "
                           f"{sum(parts.values()):.1f} of {plan.devices.memory:.0f} GB", fill="black")
    left = float(MARGIN)
    for number, (name, size) in enumerate(parts.items()):
        colour, top = COLOURS[number % len(COLOURS)], 2 * MARGIN + BAR + LINE * (number + 1)
        draw.rectangle([left, MARGIN + 4, left + size * scale, MARGIN + BAR], fill=colour)
        draw.rectangle([MARGIN, top, MARGIN + 12, top + 12], fill=colour)
        draw.text((MARGIN + 20, top), f"{name}: {size:.2f} GB", fill="black")
        left += size * scale
    edge = MARGIN + plan.devices.memory * scale
    draw.line([edge, MARGIN, edge, MARGIN + BAR + 6], fill="black", width=2)
    return image


def drawing_table(plans: list[Drawing]) -> str:
    """Drawing in every arithmetic as lines of text."""
    first = plans[0]
    lines = [f"drawing {first.batch} at a time on this CPU: {first.free_bytes / GB:.1f} GB free, read at "
             f"{first.bandwidth / GB:.1f} GB/s", "",
             f"{'':6}{'memory':>10}{'a step reads':>14}{'a step':>10}{'an image':>12}"]
    for plan in plans:
        minutes = plan.image_seconds / 60
        image = f"{minutes:.1f} min" if minutes >= 2 else f"{plan.image_seconds:.1f} s"
        note = "" if plan.fits else "   does not fit"
        note += f"   not here: {plan.missing}" if plan.missing else ""
        lines.append(f"{plan.cpu_math:6}{plan.memory_bytes / GB:>7.2f} GB{plan.step_bytes / GB:>11.2f} GB"
                     f"{1e3 * plan.step_seconds:>7.1f} ms{image:>12}{note}")
    lines += ["", "Memory is of a whole picture's keys and values too; int8 is a folder that tools/quantize.py wrote.",
              f"Time is that of reading, at {REACHED:.0%} of the bandwidth; small models take longer by their calls."]
    return "\n".join(lines)
