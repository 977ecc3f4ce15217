"""The section of RESULTS.md on detection."""

from __future__ import annotations

from typing import Any

from .page import interval_words, machine_words, table


def _detection(result: dict[str, Any]) -> str:
    lesions, cells = result["lesions"], result["cells"]
    return f"""## Detection beside MONAI's RetinaNet
`{result["command"]}`: {result["processor_seconds"]:.0f} s of processor time. {machine_words(result["machine"])}

All arms see the same training images, as many steps of four crops of one size, and equal anchors. Ours has 0.24 million
parameters, MONAI's 6.3 million. No rate was searched: ours are the defaults, MONAI's those of its LUNA16 tutorial.
{lesions["steps"]} steps are far from enough for any arm; this is no measure of how well either could do.
How the weights of our heads begin was changed after scores on some of these images had been seen (both seeds of the
blood cells, one half of the lesions): they are no untouched test images.
{_sentence("lung tumours", lesions)} {_sentence("blood cells", cells)}

Lung tumours, boxes from masks, overlap in mm; every seed halves the patients anew and scores each half by a detector of
the other: {_about(lesions)}.

{_arms(lesions)}
Blood cells, boxes as given, {cells["training_images"]} pictures to train on, {cells["pretraining_steps"]} steps of
pretraining on those without their boxes. A picture stands for a patient, for nobody says whose blood it is; intervals
are too narrow if pictures share a donor. {_about(cells)}.

{_arms(cells)}"""


def _sentence(name: str, part: dict[str, Any]) -> str:
    """Say which arm came out higher, and whether that decides anything."""
    own, words = part["arms"]["ours"]["interval"]["mean"], []
    for arm, gap in part["minus_ours"].items():
        value = part["arms"][arm]["interval"]["mean"]
        verdict = "undecided" if gap["verdict"] == "undecided" else "decided"
        words.append(f"{arm} reached {value:.3f}, {'more' if value > own else 'no more'} than ours ({verdict})")
    return f"On {name} ours reached a mAP of {own:.3f}; {'; '.join(words)}."


def _about(part: dict[str, Any]) -> str:
    boxes = ", ".join(f"{n} {name}" for name, n in part["true_boxes"].items())
    bare = part["images_without_box"]
    return (
        f"{part['images']} images of {part['patients']} patients ({bare} without a box; {boxes}), {part['seeds']} seeds"
    )


def _arms(part: dict[str, Any]) -> str:
    overlaps = list(next(iter(part["arms"].values()))["overlaps"])
    shown = list(dict.fromkeys([overlaps[0], overlaps[-1]]))
    several = len(part["true_boxes"]) > 1
    head = ["detector", "mAP [interval]", *(f"at {o}" for o in shown if len(overlaps) > 1)]
    head += [name for name in part["true_boxes"] if several]
    head += ["FROC", *(f"{rate:g} false" for rate in (0.5, 2, 8)), "minus ours"]
    rows = []
    for arm, found in part["arms"].items():
        value = found["interval"]
        row = [arm, f"{value['mean']:.3f} [{max(0.0, value['low']):.3f}, {min(1.0, value['high']):.3f}]"]
        row += [f"{found['overlaps'][o]:.3f}" for o in shown if len(overlaps) > 1]
        row += [f"{found['classes'][name][overlaps[0]]:.3f}" for name in part["true_boxes"] if several]
        curve = dict(zip(part["rates"], found["sensitivity"]))
        row += [f"{found['froc']:.3f}", *(f"{curve[rate]:.3f}" for rate in (0.5, 2, 8))]
        rows.append([*row, interval_words(part["minus_ours"][arm]) if arm in part["minus_ours"] else ""])
    said = f"mAP is the mean over overlaps {', '.join(overlaps)}" + (" and classes" if several else "")
    froc = f"FROC is the mean sensitivity at {', '.join(f'{r:g}' for r in part['rates'])} false boxes an image"
    return f"{table(head, rows)}\n{said}; {froc}, at overlap {overlaps[0]}.\n"
