"""The ladder of defects: from the PyTorch predecessor's configuration to our recipe, one change at a time.

    python benchmarks/ladder.py --list                   the rungs, what each changes, what is expected and was found
    python benchmarks/ladder.py --dry-run                what is left to run, and for how long
    python benchmarks/ladder.py --rungs 0-17             trains and evaluates them; the same command continues it
    python benchmarks/ladder.py --tables                 tables.md and success.svg of the finished rungs

Run it in the root of the repository. ``eval/plans/ladder.toml`` names the defects. Rung 0 has all of them, each next
rung mends one, and the last of this chain is the recipe. The rungs after it have one defect alone, because a chain
cannot tell which defect suffices for failure. All rungs train on the same recordings, with one seed, and are evaluated
on the same development episodes. A rung is a cell of a sweep (:mod:`wmjax.pipeline.sweep`): resumable, with one JSON
file in ``eval/plans/ladder`` when it is finished, which also names the faults that were put back.

A defect is settings, or a fault that no setting can bring (``patch = true``): ``benchmarks/ladder_defects`` puts it
back in the processes of the rung's training and evaluation alone.

The order follows from what hides what. Defects that may suffice alone (learning that stalls) are mended first, not
last: while one of them is in place, every other change would be measured at 0 %. Whether they suffice is measured by
the rungs after the chain. Then follow what training gets wrong, what the policy observes, and the world memory.

Not a rung, because it makes no difference here or cannot be made:

- Different splits of E0 and E2. Validation losses depend on the split, closed-loop success does not.
- ``set_init_state`` and then ``reset``. It discards the benchmark's initial state; the development episodes are random
  resets, whose state nobody sets.
- Evaluation in float16 of a bfloat16 model. A bfloat16 parameter of ordinary size has an exact float16 value. Whether
  activations exceed float16's 65,504 is a question about the 3B backbone.
- A horizon of K control steps. The recordings have a frame every 4 control steps.
- Latents that are not standardised, and no LayerNorm on the memory. What they do depends on the scale of the encoder's
  latents, and the encoder here is another one.
- The pre-trained 3B backbone. At ``mini`` the frozen backbone is random; a random and a pre-trained one solved 28 and
  25 of 50 episodes (docs/results.md#frozen-backbone-and-lora).
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ladder_defects import PATCHES
from wmjax.core import logs
from wmjax.core.command import number, run_command
from wmjax.core.errors import UserError, unknown_name
from wmjax.core.reading import read_toml
from wmjax.core.settings import Count, Range, Settings, build, dotted, merge
from wmjax.core.text_table import text_table
from wmjax.experiment.sweep_plan import Cell, CellSettings, Plan, resolve
from wmjax.pipeline.sweep import run_cells
from wmjax.reporting.sweep_tables import read_results, write_tables

PLAN = Path("eval/plans/ladder.toml")
Successes = Annotated[int, Range(0, 1_000_000)]


@dataclasses.dataclass(frozen=True)
class Defect(Settings, section="defects"):
    """One defect.

    Attributes:
        wrong: what it is, in words.
        expected: successes of the rung that mends it, from and to.
        patch: whether :data:`benchmarks.ladder_defects.PATCHES` has a fault of its name.
        settings: nested settings that bring it, laid over the recipe's.

    """

    wrong: str
    expected: tuple[Successes, Successes]
    patch: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Apart(Settings, section="apart"):
    """A rung beside the chain.

    Attributes:
        expected: successes, from and to.
        defects: the only ones that it has.
        config: its recipe, if not the ladder's.
        settings: nested settings beside those of its defects.

    """

    expected: tuple[Successes, Successes]
    defects: tuple[str, ...] = ()
    config: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ladder(Settings, section="ladder"):
    """A ladder as its file defines it.

    Attributes:
        config, scale, protocols, episodes: of every rung, as a plan's cell has them.
        minutes: stated for each rung.
        expected: successes of rung 0, from and to.
        defects: by name, in the order in which they are mended.
        apart: the rungs beside the chain, by name.
        settings: nested settings of every rung, below those of its defects.

    """

    config: str
    scale: str
    minutes: float
    protocols: tuple[str, ...]
    expected: tuple[Successes, Successes]
    defects: dict[str, Defect]
    episodes: Count | None = None
    apart: dict[str, Apart] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rung:
    """One training with its evaluation.

    Attributes:
        name: its cell's, which begins with its number.
        change: what distinguishes it: from the rung before it in the chain, else from the recipe.
        expected: successes, from and to.
        defects: those that it has.
        config: its recipe.
        settings: nested settings beside those of its defects.

    """

    name: str
    change: str
    expected: tuple[int, int]
    defects: tuple[str, ...]
    config: str
    settings: dict[str, Any]


def read_ladder(path: Path) -> Ladder:
    """Reads a ladder.

    Raises:
        UserError: no such file, an unknown key or defect, a wrong type, a fault that is not in ``PATCHES``.

    """
    try:
        ladder = build(Ladder, read_toml(path, dict[str, Any], "correct the ladder"))
        for name, defect in ladder.defects.items():
            if defect.patch and name not in PATCHES:
                raise unknown_name("fault", name, PATCHES)
        for apart in ladder.apart.values():
            for name in apart.defects:
                if name not in ladder.defects:
                    raise unknown_name("defect", name, ladder.defects)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}; correct the ladder") from error
    return ladder


def rungs_of(ladder: Ladder) -> list[Rung]:
    """All rungs in order: the chain from all defects to none, then those apart."""
    names = tuple(ladder.defects)
    found = [Rung("r00_predecessor", "has all defects", ladder.expected, names, ladder.config, {})]
    for place, (name, defect) in enumerate(ladder.defects.items(), 1):
        change = f"mends: {defect.wrong}"
        found.append(Rung(f"r{place:02}_mends_{name}", change, defect.expected, names[place:], ladder.config, {}))
    for place, (name, apart) in enumerate(ladder.apart.items(), len(found)):
        config, wrong = apart.config or ladder.config, [ladder.defects[each].wrong for each in apart.defects]
        wrong += [f"{key} {value}" for key, value in dotted(apart.settings).items()]
        change = f"{config} with: {'; '.join(wrong) or 'no defect'}"
        found.append(Rung(f"r{place:02}_only_{name}", change, apart.expected, apart.defects, config, apart.settings))
    return found


def cells_of(ladder: Ladder, rungs: Sequence[Rung]) -> list[Cell]:
    """The rungs as cells of a sweep; those with faults run through ``benchmarks.ladder_defects``.

    Raises:
        UserError: an unknown recipe, setting or protocol, settings that contradict each other.

    """
    cells = {}
    for rung in rungs:
        settings = ladder.settings
        for name in rung.defects:
            settings = merge(settings, ladder.defects[name].settings)
        settings = merge(settings, rung.settings)
        cells[rung.name] = CellSettings(
            rung.config,
            ladder.minutes,
            ladder.scale,
            protocols=ladder.protocols,
            episodes=ladder.episodes,
            settings=settings,
        )
    through = []
    for rung in rungs:
        faults = [name for name in rung.defects if ladder.defects[name].patch]
        through.append(("benchmarks.ladder_defects", ",".join(faults)) if faults else ())
    return [dataclasses.replace(cell, through=words) for cell, words in zip(resolve(Plan(cells)), through, strict=True)]


def chosen(text: str, count: int) -> list[int]:
    """The numbers that a text such as ``0,3-5`` names, ascending.

    Raises:
        UserError: another text, or a number that no rung has.

    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < count:
            raise UserError(f"--rungs is {text!r}; give numbers from 0 to {count - 1}, as in 0,3-5")
        found.update(range(first, last + 1))
    return sorted(found)


def listing(ladder: Ladder, rungs: Sequence[Rung], folder: Path) -> str:
    """The table of rungs, with the successes of those that are finished, and the stated minutes of all."""
    found = {result.cell: f"{result.successes}/{result.episodes}" for result in read_results(folder)}
    rows = [
        (rung.name, f"{rung.expected[0]} to {rung.expected[1]}", found.get(rung.name, "not run"), rung.change)
        for rung in rungs
    ]
    lines = text_table(("rung", "expected", "found", "what it changes"), rows, left=(0, -1))
    total = ladder.minutes * len(rungs)
    return f"{lines}\n{len(rungs)} rungs, {total:.0f} min stated on two quiet cores"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="print the rungs and run nothing")
    parser.add_argument("--dry-run", action="store_true", help="print what is left to run, and for how long")
    parser.add_argument("--tables", action="store_true", help="run nothing; write the tables of the finished rungs")
    parser.add_argument("--rungs", help="their numbers, as in 0,3-5 (default: all)")
    parser.add_argument("--minutes", help="begin only rungs whose stated minutes fit into this limit")
    parser.add_argument("--plan", type=Path, default=PLAN, help=f"the ladder's file (default: {PLAN})")
    parser.add_argument("--out", type=Path, help="folder of the JSON files (default: beside the plan, with its name)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    options = parser().parse_args(arguments)

    def body() -> int:
        logs.set_up()
        ladder = read_ladder(options.plan)
        rungs, folder = rungs_of(ladder), options.out or options.plan.with_suffix("")
        if options.rungs is not None:
            rungs = [rungs[place] for place in chosen(options.rungs, len(rungs))]
        if options.list:
            print(listing(ladder, rungs, folder))
            return 0
        if options.tables:
            print("\n".join(f"written: {path}" for path in write_tables(folder)))
            return 0
        minutes = None if options.minutes is None else number("minutes", 0)(options.minutes)
        cells = cells_of(ladder, rungs)
        return run_cells(cells, folder, options.plan.stem, minutes=minutes, dry_run=options.dry_run)

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
