"""The file of Steam."""

from pathlib import Path

from fedleak.data.steam import Steam


def test_games_are_numbered_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "steam-200k.csv"
    path.write_text(
        '7,"Warhammer, 40K",purchase,1.0,0\n'
        '7,"Warhammer, 40K",play,12.5,0\n'
        "\n"
        "7,Portal,purchase,1.0,0\n"
        "3,Portal,play,0.5,0\n",
        encoding="utf-8",
    )
    users, items = Steam(path=str(path)).load()
    assert users.tolist() == [7, 7, 7, 3]
    assert items.tolist() == [0, 0, 1, 1]


def test_games_are_named_column_by_column(tmp_path: Path) -> None:
    path = tmp_path / "steam-200k.csv"
    rows = [f"{user},Game {item},play,1,0" for user in range(9) for item in (4, 2, 9, 7, 0)]
    path.write_text("\n".join(["99,Played by one alone,play,1,0", *rows]), encoding="utf-8")
    data = Steam(path=str(path), held_out=2)
    assert data.item_names() == ["Game 4", "Game 2", "Game 9", "Game 7", "Game 0"]
    assert data.num_users == 9  # a user of a single game is left out
