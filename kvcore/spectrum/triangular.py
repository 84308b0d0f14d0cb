"""The streaming decomposition that keeps the tail: a triangle in place of the Gram matrix."""

from typing import ClassVar

import torch
from torch import Tensor

from kvcore.spectrum.streaming import StreamingSVD


class TriangularSVD(StreamingSVD):
    """As `StreamingSVD`, from the triangular factor R of K = Q R, which never squares the condition number.

    Singular values come out within 1e-6 relative down to 1e-9 of the largest. Rows are kept until there are
    twice as many as columns, then [R; rows] is factored anew by Householder reflections: about 3 kv_dim^2
    multiplications a row, and at most 64 kv_dim^2 bytes in all. Left out: exploiting that R
    is triangular already (LAPACK's tpqrt) would save a third, and torch does not offer it.

    Attributes:
        triangle: (kv_dim, kv_dim) float64, R of the rows factored so far.

    References:
        Demmel et al., "Communication-optimal parallel and sequential QR and LU factorizations", 2012 (TSQR).
    """

    precision: ClassVar[str] = "exact"

    def __init__(self, kv_dim: int, device: torch.device | str = "cpu") -> None:
        """Start with no rows; see `StreamingSVD`."""
        super().__init__(kv_dim, device)
        self._waiting: list[Tensor] = []

    @staticmethod
    def bytes_needed(kv_dim: int) -> int:
        """Return how much memory an accumulator takes: the triangle, waiting rows, and both once more factored."""
        return 8 * 8 * kv_dim**2

    def current_triangle(self) -> Tensor:
        """Return (kv_dim, kv_dim) float64: R of all rows seen, zeros below the diagonal."""
        if self._waiting:
            # LAPACK answers rows with bad numbers with an error of its own; they must show as what they are.
            rows = torch.cat(self._waiting)
            self._waiting = []
            self.triangle = self._factor(rows) if rows.isfinite().all() else torch.full_like(self.triangle, torch.nan)
        return self.triangle

    def _add(self, rows: Tensor) -> None:
        self._waiting.append(rows.clone())  # the caller may fill the same memory with other rows
        if sum(map(len, self._waiting)) >= 2 * self.kv_dim:
            self.current_triangle()

    def _add_triangle(self, triangle: Tensor) -> None:
        self._waiting.append(triangle)

    def _triangle_of_columns(self, start: int, stop: int) -> Tensor:
        factor: Tensor = torch.linalg.qr(self.current_triangle()[:, start:stop], mode="r")[1]
        return factor

    def _factor(self, rows: Tensor) -> Tensor:
        factor: Tensor = torch.linalg.qr(torch.cat([self.triangle, rows]), mode="r")[1]
        return factor * torch.where(factor.diagonal() < 0, -1.0, 1.0)[:, None]  # one factor, not one of many

    def _values(self, triangle: Tensor) -> Tensor:
        values: Tensor = torch.linalg.svdvals(triangle)
        return values

    def _values_and_vectors(self, triangle: Tensor) -> tuple[Tensor, Tensor]:
        _, values, vectors = torch.linalg.svd(triangle)
        return values, vectors.T


ACCUMULATORS: dict[str, type[StreamingSVD]] = {made.precision: made for made in (StreamingSVD, TriangularSVD)}
