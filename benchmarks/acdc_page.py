"""The section of RESULTS.md on ACDC short axis."""

from __future__ import annotations

from typing import Any


def _interval(value: dict[str, Any]) -> str:
    numbers = f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
    return f"{numbers} {value['verdict']}" if value.get("p_corrected") is not None else numbers


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def _dice(by_arm: dict[str, dict[str, float]], counts: list[str]) -> list[list[str]]:
    return [[arm, *(f"{by_count[n]:.3f}" for n in counts)] for arm, by_count in by_arm.items()]


def _differences(found: dict[str, Any], counts: list[str]) -> list[list[str]]:
    return [
        [
            f"{recipe} minus {value['against']}",
            *(_interval(value["by count"][n]) for n in counts),
            _interval(value["all counts"]),
            f"{value['all counts']['p_corrected']:.3f}",
        ]
        for recipe, value in found.items()
    ]


def _alone(found: dict[str, Any]) -> list[list[str]]:
    return [
        [recipe, *(_interval({**one, "p_corrected": None}) for one in value["by pretraining seed"].values()),
         value["label seeds x counts up"], value["patients up"]]
        for recipe, value in found.items()
    ]  # fmt: skip


def _acdc(result: dict[str, Any]) -> str:
    counts = [str(n) for n in result["counts"]]
    patients, seeds = result["patients"], result["seeds"]
    steps, times = result["steps"]["fine-tuning"][0], result["steps"]["times"]
    seconds = ", ".join(f"{what} {value:.0f}" for what, value in result["seconds"].items())
    where = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    head = ["", *(f"{n} patients" if n != "1" else "1 patient" for n in counts)]
    gaps = [*head, "all counts", "p, Holm"]
    longer = [
        [
            f"{arm} x{times} minus {arm}",
            *(_interval({**value[n], "p_corrected": None}) for n in (*counts, "all counts")),
        ]
        for arm, value in result["longer_against_scratch"].items()
    ]
    rates = [
        [arm, *(f"{by_rate[rate]:.3f}" for rate in by_rate), f"{result['rates'][arm]:g}"]
        for arm, by_rate in result["validation_dice_by_rate"].items()
    ]
    return f"""## Does pretraining help where labels are few? ACDC short axis
`{result["command"]}`, split, seeds, arms, grid and endpoints fixed in commit {
        result["analysis_commit"]
    }, before any test
patient was scored. {where["cpus"]} CPU cores shared with other work, {where["threads"]} thread; commit
{where["commit"]}; {versions}. Seconds: {seconds}.

{patients["test"]} test patients, {patients["validation"]} validation, 20 training patients and 15 of Sunnybrook without
labels ({patients["train"]} images pretrained on). Labels: {", ".join(counts)} patients, {seeds["label"]} label seeds;
{len(seeds["pretraining"])} pretraining seeds, averaged by label seed and patient; fine-tuning {steps} steps of
{result["slices_a_step"][0]} slices, for scratch also {steps * times}. Dice of right ventricle, myocardium, left
ventricle. Spacing is nominal, so no distances. The benchmark's data are non-commercial and do not ship.

Fine-tuned, test Dice:

{_table(head, _dice(result["dice"], counts))}
Minus scratch of the same architecture and steps; the last two columns are the primary endpoint:

{_table(gaps, _differences(result["primary"], counts))}
Over all counts by pretraining seed, and how often it is up:

{
        _table(
            ["minus scratch", *(f"seed {s}" for s in seeds["pretraining"]), "seeds x counts up", "patients up"],
            _alone(result["primary"]),
        )
    }
Minus scratch with {times} times the steps:

{_table(gaps, _differences(result["against_longer"], counts))}
What {times} times the steps give to scratch:

{_table([*head, "all counts"], longer)}
Frozen dense probe, test Dice:

{_table(head, _dice(result["probe"], counts))}
{
        _table(
            gaps,
            _differences(result["probe_against_random"], counts)
            + _differences(result["probe_against_no_network"], counts),
        )
    }
Rates, by the mean Dice of the validation patients with 3 labelled patients, one label seed:

{_table(["arm", *(f"{rate:g}" for rate in result["grid"]), "chosen"], rates)}
{result.get("note", "")}"""
