"""Last.fm, HetRec 2011: which artists 1,892 users listened to."""

import numpy as np

from fedleak.data.images import find_data_path
from fedleak.data.interactions import Ids
from fedleak.data.recommender import RecommenderData
from fedleak.data.text_tables import Column, Layout, read_lines, read_pairs
from fedleak.errors import BadInput

LISTENS = Layout(
    (Column("userID", 0, "i8"), Column("artistID", 1, "i8"), Column("weight", 2, "f8")),
    delimiter="\t",
    header=True,
)


class LastFM(RecommenderData):
    """Users and the artists whom they listened to at least once.

    The file ``user_artists.dat`` of hetrec2011-lastfm-2k.zip, https://grouplens.org/datasets/hetrec-2011
    (Cantador et al., HetRec 2011): tab-separated userID, artistID, weight under a header.

    Args:
        path: the file; see :func:`fedleak.data.images.find_data_path`.
        artists: ``artists.dat`` of the same archive (tab-separated id and name under a header,
            further columns are ignored). If None, artists are named by their ids.
        held_out: see :class:`RecommenderData`.
        batch_size: see :class:`RecommenderData`.
        split_seed: see :class:`RecommenderData`.
    """

    name = "lastfm"

    def __init__(
        self,
        *,
        path: str = "user_artists.dat",
        artists: str | None = None,
        held_out: int = 100,
        batch_size: int = 64,
        split_seed: int = 98765,
    ) -> None:
        super().__init__(held_out=held_out, batch_size=batch_size, split_seed=split_seed)
        self.path = path
        self.artists = artists

    def load(self) -> tuple[Ids, Ids]:
        """See :meth:`RecommenderData.load`."""
        return read_pairs(find_data_path(self.path), LISTENS, above=0)

    def item_names(self) -> list[str]:
        """See :meth:`RecommenderData.item_names`.

        Raises:
            BadInput: if a row of the artists' file lacks an id and a name; the message gives the
                line's number.
        """
        if self.artists is None:
            return super().item_names()
        path = find_data_path(self.artists)
        names: dict[int, str] = {}
        try:
            # Some of the names are not valid UTF-8; they are only displayed.
            with path.open(encoding="utf-8", errors="replace") as file:
                for number, line in enumerate(read_lines(file, path), start=1):
                    item, _, rest = line.rstrip("\n").partition("\t")
                    if number == 1 or not line.strip():
                        continue
                    if not (item.isdecimal() and rest):
                        raise BadInput(
                            f"Expected an artist's id and name between tabs in line {number} of "
                            f"{path}, got `{line.strip()[:60]}`."
                        )
                    names[int(item)] = rest.split("\t")[0]
        except OSError as error:
            raise BadInput(f"Expected a file at {path}, got: {error.strerror}.") from error
        return [names.get(int(item), str(item)) for item in np.asarray(self.split.items)]
