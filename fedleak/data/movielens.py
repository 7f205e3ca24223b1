"""MovieLens 1M, 100K and 20M: which films users liked."""

from fedleak.data.images import find_data_path
from fedleak.data.interactions import Ids
from fedleak.data.recommender import RecommenderData
from fedleak.data.text_tables import Column, Layout, read_pairs
from fedleak.errors import require

RATINGS = (Column("user", 0, "i8"), Column("film", 1, "i8"), Column("rating", 2, "f4"))
# Extension of the file -> layout of its rows.
LAYOUTS = {
    ".dat": Layout(RATINGS, delimiter="::"),
    ".csv": Layout(RATINGS, delimiter=",", header=True),
    ".data": Layout(RATINGS, delimiter="\t"),
}


class MovieLens(RecommenderData):
    """Users and the films that they rated above a threshold.

    The files of https://grouplens.org/datasets/movielens: ``ratings.dat`` (1M, ``::`` between the
    columns), ``u.data`` (100K, tabs), ``ratings.csv`` (20M and later, commas under a header); the
    extension determines the layout. Columns are user, film and rating.

    Args:
        path: the file; see :func:`fedleak.data.images.find_data_path`.
        above: a film counts as liked if its rating is above this value, 0 to 5.
        held_out: see :class:`RecommenderData`.
        batch_size: see :class:`RecommenderData`.
        split_seed: see :class:`RecommenderData`.

    Raises:
        BadInput: if the extension is another one, or a value is out of its range.
    """

    name = "movielens"

    def __init__(
        self,
        *,
        path: str = "ratings.dat",
        above: float = 3.5,
        held_out: int = 200,
        batch_size: int = 64,
        split_seed: int = 98765,
    ) -> None:
        super().__init__(held_out=held_out, batch_size=batch_size, split_seed=split_seed)
        suffix = find_data_path(path).suffix
        require(
            suffix in LAYOUTS,
            f"Expected `path` to end in one of {', '.join(LAYOUTS)}, got `{path}`.",
        )
        require(0 <= above <= 5, f"Expected `above` to be from 0 to 5, got {above}.")
        self.path = path
        self.above = above
        self._layout = LAYOUTS[suffix]

    def load(self) -> tuple[Ids, Ids]:
        """See :meth:`RecommenderData.load`."""
        return read_pairs(find_data_path(self.path), self._layout, above=self.above)
