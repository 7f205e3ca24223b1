"""Reduced bases of integer lattices by LLL, in exact integer arithmetic."""


def reduced(rows: list[list[int]]) -> list[list[int]]:
    """An LLL-reduced basis of the lattice that some vectors span, the shortest first.

    Lenstra, Lenstra, Lovasz 1982, with Lovasz factor 3/4 and the integer Gram-Schmidt coefficients
    of Cohen, A Course in Computational Algebraic Number Theory, 1993, algorithm 2.6.7.

    Args:
        rows: linearly independent vectors.

    Raises:
        ValueError: if they are linearly dependent.
    """
    basis = _Basis([list(row) for row in rows])
    at, known = 1, 0
    basis.orthogonalise(0)
    while at < len(rows):
        if at > known:
            basis.orthogonalise(at)
            known = at
        basis.size_reduce(at, at - 1)
        if basis.is_ordered(at):
            for other in reversed(range(at - 1)):
                basis.size_reduce(at, other)
            at += 1
        else:
            basis.swap(at, known)
            at = max(1, at - 1)
    return sorted(basis.rows, key=lambda row: sum(value * value for value in row))


class _Basis:
    """A basis with the integers of its Gram-Schmidt orthogonalisation.

    Attributes:
        rows: the basis.
    """

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows = rows
        # Determinants of the leading Gram matrices, that of none first.
        self._d = [1, *[0] * len(rows)]
        self._mu = [[0] * len(rows) for _ in rows]

    def orthogonalise(self, at: int) -> None:
        """Compute the coefficients of a row from the rows before it."""
        d, mu = self._d, self._mu
        for j in range(at + 1):
            value = sum(x * y for x, y in zip(self.rows[at], self.rows[j], strict=True))
            for i in range(j):
                value = (d[i + 1] * value - mu[at][i] * mu[j][i]) // d[i]
            if j < at:
                mu[at][j] = value
        if value == 0:
            raise ValueError("Expected linearly independent vectors, got dependent ones.")
        d[at + 1] = value

    def size_reduce(self, at: int, other: int) -> None:
        """Subtract the multiple of another row that leaves the smallest coefficient."""
        d, mu = self._d, self._mu
        if 2 * abs(mu[at][other]) <= d[other + 1]:
            return
        times = (2 * mu[at][other] + d[other + 1]) // (2 * d[other + 1])
        self.rows[at] = [
            x - times * y for x, y in zip(self.rows[at], self.rows[other], strict=True)
        ]
        mu[at][other] -= times * d[other + 1]
        for i in range(other):
            mu[at][i] -= times * mu[other][i]

    def is_ordered(self, at: int) -> bool:
        """Lovasz's condition of a row and the one before it."""
        d, mu = self._d, self._mu[at][at - 1]
        return 4 * (d[at + 1] * d[at - 1] + mu * mu) >= 3 * d[at] ** 2

    def swap(self, at: int, known: int) -> None:
        """Swap a row with the one before it.

        Args:
            at: number of the row.
            known: number of the last row whose coefficients are known.
        """
        d, mu = self._d, self._mu
        self.rows[at], self.rows[at - 1] = self.rows[at - 1], self.rows[at]
        for j in range(at - 1):
            mu[at][j], mu[at - 1][j] = mu[at - 1][j], mu[at][j]
        own = mu[at][at - 1]
        new = (d[at - 1] * d[at + 1] + own * own) // d[at]
        for i in range(at + 1, known + 1):
            value = mu[i][at]
            mu[i][at] = (d[at + 1] * mu[i][at - 1] - own * value) // d[at]
            mu[i][at - 1] = (new * value + own * mu[i][at]) // d[at + 1]
        d[at] = new
