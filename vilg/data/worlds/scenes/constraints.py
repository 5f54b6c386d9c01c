"""What a caption claims about a scene, and whether a scene bears it out."""
import itertools
from dataclasses import dataclass

from vilg.data.worlds.scenes.scene import Object, Scene, sides_of


@dataclass(frozen=True)
class Description:
    """``count`` objects of which each has the attributes that are not None; ``cell`` is (row, column)."""

    count: int = 1
    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    cell: tuple[int, int] | None = None

    def fits(self, item: Object) -> bool:
        """Whether an object has every named attribute; one of unknown shape is nothing that can be described."""
        return item.shape != "unknown" and all(wanted in (None, found) for wanted, found in (
            (self.colour, item.colour), (self.shape, item.shape), (self.size, item.size), (self.cell, item.cell)))


@dataclass(frozen=True)
class Relation:
    """Every object of group ``first`` is on ``side`` of every object of group ``second``."""

    first: int
    side: str
    second: int


@dataclass(frozen=True)
class Constraints:
    """A caption's claim: the scene holds these groups of objects and nothing else, in these relations."""

    groups: tuple[Description, ...]
    relations: tuple[Relation, ...] = ()

    def hold(self, scene: Scene) -> bool:
        """Whether some way of dealing the scene's objects to the groups fits every group and relation."""
        owners = [index for index, group in enumerate(self.groups) for _ in range(group.count)]
        if len(owners) != len(scene.objects):
            return False
        return any(self._hold_for(dealt, owners) for dealt in itertools.permutations(scene.objects))

    def _hold_for(self, dealt: tuple[Object, ...], owners: list[int]) -> bool:
        if not all(self.groups[owner].fits(item) for item, owner in zip(dealt, owners, strict=True)):
            return False
        return all(sides_of(first, second)[relation.side]
                   for relation in self.relations
                   for first, one in zip(dealt, owners, strict=True) if one == relation.first
                   for second, other in zip(dealt, owners, strict=True) if other == relation.second)
