"""The paper's tables 1 to 4 of a study, and what their arrows rest on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dira_core.study.plan import Arm, Study
from dira_core.study.results import Comparison, Entry, Place
from dira_core.study.statistics import LEVEL, spread, win_tie_loss

NAMES: Mapping[Arm, str] = {"random": "Random", "imagenet": "Supervised ImageNet"}
PARTS: Mapping[Arm, tuple[str, str, str]] = {
    "di": ("✓", "✗", "✗"),
    "dir": ("✓", "✓", "✗"),
    "dira": ("✓", "✓", "✓"),
}
MARKS = "↑ better, ↓ worse, = no significant difference"


@dataclass(frozen=True)
class Text:
    """A cell: text, whether it is the best of its column or the second best."""

    text: str
    value: float | None = None
    best: bool = False
    second: bool = False


@dataclass(frozen=True)
class Table:
    """A table: its title, header, rows, and what is to be said below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Text]]
    note: str = ""


class Layout:
    """Lay out what a study found, for one way of using weights.

    Args:
        study: The plan.
        found: Entries by place.
        compared: All comparisons.
        way: Of using weights.
    """

    def __init__(
        self,
        study: Study,
        found: Mapping[Place, Sequence[Entry]],
        compared: Sequence[Comparison],
        way: str,
    ) -> None:
        self._study = study
        self._way = way
        self._places = [place for place in found if place[1] == way]
        self._entries = {
            (entry.recipe, entry.arm, place): entry
            for place in self._places
            for entry in found[place]
        }
        self._compared = {
            (c.recipe, c.arm, c.against, (c.target, c.way, c.fraction)): c for c in compared
        }

    def tables(self) -> Iterator[Table]:
        """Yield those of tables 1 to 4 that the arms of the study fill."""
        arms = self._study.arms
        if "di" in arms and "dira" in arms:
            yield self._fractions()
        if "dira" in arms and ("random" in arms or "imagenet" in arms):
            yield self._supervised()
        if "random" in arms and "dira" in arms and ("dir" in arms or "di" in arms):
            yield self._restorative()
        if "di" in arms and len(arms) > 1:
            yield self._ablation()

    def _fractions(self) -> Table:
        """Table 1: means of a method and of DiRA on top of it, by label fraction."""
        rows = []
        for recipe in self._study.recipes:
            plain = [self._mean(recipe, "di", place) for place in self._places]
            dira = [self._mean(recipe, "dira", place) for place in self._places]
            gained = [self._gained(a, b) for a, b in zip(dira, plain, strict=True)]
            rows += [[Text(recipe), *plain], [Text(f"DiRA {recipe}"), *gained]]
        note = "Means; in brackets the difference to the method alone."
        return self._table("1", "label fractions", ["Method", *self._columns()], rows, note)

    def _supervised(self) -> Table:
        """Table 2: DiRA against networks that were not pretrained, or on ImageNet's labels."""
        baselines = [arm for arm in self._study.arms if arm in NAMES]
        rows = [
            [Text(NAMES[arm]), *(self._spread("", arm, place) for place in self._places)]
            for arm in baselines
        ]
        for recipe in self._study.recipes:
            cells = [
                self._marked(self._spread(recipe, "dira", place), recipe, "dira", baselines, place)
                for place in self._places
            ]
            rows.append([Text(f"DiRA {recipe}"), *cells])
        against = ", then ".join(NAMES[arm] for arm in baselines)
        note = f"Against {against}: {MARKS}."
        header = ["Method", *self._columns()]
        return self._table("2", "untrained and supervised networks", header, ranked(rows), note)

    def _restorative(self) -> Table:
        """Table 3: each task a row; without pretraining, before the adversary, and DiRA."""
        base: Arm = "dir" if "dir" in self._study.arms else "di"
        header = ["Dataset", NAMES["random"]]
        for recipe in self._study.recipes:
            header += [f"{recipe} {base}", f"DiRA {recipe}"]
        rows = []
        for place, column in zip(self._places, self._columns(), strict=True):
            row = [Text(column), self._spread("", "random", place)]
            for recipe in self._study.recipes:
                before = self._spread(recipe, base, place)
                row += [before, self._gained(self._spread(recipe, "dira", place), before)]
            rows.append(row)
        note = f"In brackets the difference to {base} of the same method."
        return self._table("3", "restorative pretraining", header, rows, note)

    def _ablation(self) -> Table:
        """Table 4: what each component adds."""
        rows = []
        for recipe in self._study.recipes:
            for arm, parts in PARTS.items():
                if arm in self._study.arms:
                    cells: list[Text] = []
                    for place in self._places:
                        cell = self._spread(recipe, arm, place)
                        against: list[Arm] = [] if arm == "di" else ["di"]
                        cells.append(self._marked(cell, recipe, arm, against, place))
                    rows.append([Text(recipe), *map(Text, parts), *cells])
        if "random" in self._study.arms:
            untrained = [self._spread("", "random", place) for place in self._places]
            rows.append([Text(NAMES["random"]), *[Text("✗")] * 3, *untrained])
        header = ["Base", "L_dis", "L_res", "L_adv", *self._columns()]
        note = f"Against L_dis alone: {MARKS}."
        return self._table("4", "ablation", header, ranked(rows), note)

    def _table(
        self,
        number: str,
        about: str,
        header: Sequence[str],
        rows: Sequence[Sequence[Text]],
        note: str,
    ) -> Table:
        return Table(f"Table {number} ({self._way}): {about}", header, rows, note)

    def _columns(self) -> list[str]:
        return [f"{target} {fraction:.3g}" for target, _, fraction in self._places]

    def _mean(self, recipe: str, arm: Arm, place: Place) -> Text:
        entry = self._entries.get((recipe, arm, place))
        if entry is None:
            return Text("-")
        mean = spread(entry.values).mean
        return Text(f"{mean:.2f}", mean)

    def _spread(self, recipe: str, arm: Arm, place: Place) -> Text:
        entry = self._entries.get((recipe, arm, place))
        if entry is None:
            return Text("-")
        mean, std = spread(entry.values)
        return Text(f"{mean:.2f}" + ("" if std is None else f" ± {std:.2f}"), mean)

    @staticmethod
    def _gained(cell: Text, before: Text) -> Text:
        if cell.value is None or before.value is None:
            return cell
        gain = cell.value - before.value
        arrow = "↑" if gain >= 0 else "↓"
        return replace(cell, text=f"{cell.text} ({arrow} {abs(gain):.2f})", best=gain > 0)

    def _marked(
        self, cell: Text, recipe: str, arm: Arm, against: Sequence[Arm], place: Place
    ) -> Text:
        found = [self._compared.get((recipe, arm, other, place)) for other in against]
        marks = [mark(each) for each in found if each is not None]
        return replace(cell, text=" ".join([cell.text, *filter(None, marks)]))


def mark(found: Comparison) -> str:
    """Return the arrow of a comparison, by corrected p; nothing where that is not defined."""
    if found.p_holm is None:
        return ""
    if found.p_holm >= LEVEL:
        return "="
    return "↑" if found.difference > 0 else "↓"


def ranked(rows: Sequence[Sequence[Text]]) -> list[list[Text]]:
    """Mark the best and the second best value of each column."""
    found = [[*row] for row in rows]
    for column in range(len(found[0]) if found else 0):
        values = sorted({c.value for row in found if (c := row[column]).value is not None})
        for row in found:
            value = row[column].value
            best, second = value in values[-1:], len(values) > 2 and value == values[-2]
            row[column] = replace(row[column], best=best, second=second)
    return found


def compared_table(compared: Sequence[Comparison]) -> Table:
    """Return all comparisons with what they rest on."""
    header = ["Task", "Arm", "Against", "Difference", "95 % of patients", "p", "p (Holm)", "g"]
    rows = [
        [
            Text(f"{c.target} {c.way} {c.fraction:.3g}"),
            Text(f"{c.recipe} {c.arm}".strip()),
            Text(c.against),
            Text(f"{c.difference:+.2f}"),
            Text("-" if c.interval is None else f"{c.interval[0]:+.2f} to {c.interval[1]:+.2f}"),
            *(Text("-" if v is None else f"{v:.3f}") for v in (c.p, c.p_holm)),
            Text("-" if c.g is None else f"{c.g:+.2f}"),
        ]
        for c in compared
    ]
    note = (
        "Difference of the means over seeds. Its interval: test patients drawn with replacement, "
        "networks as they are. p: independent two-sample t-test over seeds, as in the paper; "
        "Holm's correction over all lines. g: Hedges' effect size over seeds."
    )
    return Table("Table 5: comparisons", header, rows, note)


def wins_table(compared: Sequence[Comparison]) -> Table:
    """Count over all tasks how often an arm is better than another."""
    pairs = dict.fromkeys((c.recipe, c.arm, c.against) for c in compared)
    rows = []
    for recipe, arm, against in pairs:
        of = [c for c in compared if (c.recipe, c.arm, c.against) == (recipe, arm, against)]
        counts = win_tie_loss([(c.difference, c.p_holm) for c in of])
        higher = sum(c.difference > 0 for c in of)
        name = f"{recipe} {arm}".strip()
        cells = [name, against, *map(str, counts), f"{higher} of {len(of)}"]
        rows.append([*map(Text, cells)])
    header = ["Arm", "Against", "Wins", "Ties", "Losses", "Untested", "Higher mean"]
    note = (
        "A win or loss is significant after Holm's correction, a tie is not. Untested: one value "
        "has no deviation, and no t-test."
    )
    return Table("Table 6: wins, ties, losses over all tasks", header, rows, note)


def all_tables(
    study: Study, found: Mapping[Place, Sequence[Entry]], compared: Sequence[Comparison]
) -> list[Table]:
    """Return every table of a study."""
    ways = dict.fromkeys(way for _, way, _ in found)
    tables = [table for way in ways for table in Layout(study, found, compared, way).tables()]
    return [*tables, compared_table(compared), wins_table(compared)] if compared else tables
