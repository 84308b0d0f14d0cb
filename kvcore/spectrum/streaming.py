"""Streaming singular value decomposition of a tall matrix that never exists as a whole."""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

_STRIP = 128  # columns: wide enough for the matrix product to run at full speed


@dataclass(frozen=True)
class Spectrum:
    """Singular values and right singular vectors of all rows seen.

    Attributes:
        singular_values: (kv_dim,) float64, descending, all of them.
        right_singular_vectors: (kv_dim, kv_dim) float64, one vector a column, in the order of the values;
            the entry of largest magnitude of each is positive.
        tokens: Number of rows seen.
    """

    singular_values: Tensor
    right_singular_vectors: Tensor
    tokens: int

    @property
    def kv_dim(self) -> int:
        """Columns of the decomposed matrix."""
        return len(self.singular_values)

    def to(self, device: torch.device | str) -> "Spectrum":
        """Return the same on a device."""
        return Spectrum(self.singular_values.to(device), self.right_singular_vectors.to(device), self.tokens)


class StreamingSVD:
    """Exact right singular vectors and singular values of a matrix that arrives in batches of rows.

    Holds the upper triangle of the Gram matrix K^T K, accumulated in float64, whose eigenvalues are the squared
    singular values. The rows are neither centred nor scaled. Time per row kv_dim^2 multiplications; on a CPU,
    where they take the time, only strips from the diagonal on are computed, which saves three eighths of them
    and more. `finish` O(kv_dim^3); memory 8 kv_dim^2 bytes whatever the number of rows.

    Left out: the symmetric product of BLAS (dsyrk), which would save half. torch does not offer it, and that of scipy
    keeps threads of its own: alone it is up to 1.5 times as fast as the strips, between the layers of
    a forward pass up to six times as slow, as the two sets of threads wait for each other.

    Forming K^T K squares the condition number: singular values below about 1e-8 of the largest are lost in
    rounding. In float64 this moves the normalized effective rank by at most 4e-7 (a matrix of exact rank 256 in
    1,024 dimensions); in float32 it moves it by up to 5e-4. `TriangularSVD` keeps them, for a few times the work.

    Attributes:
        precision: Name of the method.
        kv_dim: Columns of the matrix.
        triangle: (kv_dim, kv_dim) float64; its upper triangle, diagonal included, is that of K^T K of the rows seen,
            and what stands below has no meaning.
        tokens: Rows seen.

    References:
        Swift-SVD, arXiv 2604.01609 (the streaming covariance form).
    """

    precision: ClassVar[str] = "standard"

    def __init__(self, kv_dim: int, device: torch.device | str = "cpu") -> None:
        """Start with no rows.

        Args:
            kv_dim: Columns of the matrix, 1 or more.
            device: Where the triangle lives; rows are moved there.

        Raises:
            ValueError: `kv_dim` is below 1.
        """
        if kv_dim < 1:
            raise ValueError(f"kv_dim = {kv_dim}: 1 or more")
        self.kv_dim = kv_dim
        self.tokens = 0
        self.triangle = torch.zeros(kv_dim, kv_dim, dtype=torch.float64, device=device)

    @staticmethod
    def bytes_needed(kv_dim: int) -> int:
        """Return how much memory an accumulator takes."""
        return 8 * kv_dim**2

    def update(self, rows: Tensor) -> Self:
        """Add rows.

        Args:
            rows: (tokens, kv_dim), any floating dtype and device.

        Raises:
            ValueError: The rows have another shape or are not floating-point numbers.
        """
        if rows.dim() != 2 or rows.shape[1] != self.kv_dim or not rows.is_floating_point():
            expected = f"floating-point rows of shape (tokens, {self.kv_dim})"
            raise ValueError(f"rows of shape {tuple(rows.shape)} and {rows.dtype}: expected {expected}")
        if len(rows):
            self._add(rows.detach().to(device=self.triangle.device, dtype=torch.float64))
            self.tokens += len(rows)
        return self

    def merge(self, other: Self) -> Self:
        """Add all rows that another accumulator has seen; the other one is left as it is.

        Raises:
            ValueError: The other accumulator has another `kv_dim` or precision.
        """
        if other.kv_dim != self.kv_dim:
            raise ValueError(f"kv_dim = {other.kv_dim}: only kv_dim = {self.kv_dim} can be merged")
        if other.precision != self.precision:
            raise ValueError(f"precision {other.precision}: only precision {self.precision} can be merged")
        self._add_triangle(other.current_triangle().to(self.triangle.device))
        self.tokens += other.tokens
        return self

    def columns(self, start: int, stop: int) -> Self:
        """Return the accumulator that would have seen only these columns of the rows; exact.

        Args:
            start: First column.
            stop: Column after the last.
        """
        part = type(self)(stop - start, device=self.triangle.device)
        part.triangle = self._triangle_of_columns(start, stop)
        part.tokens = self.tokens
        return part

    def current_triangle(self) -> Tensor:
        """Return (kv_dim, kv_dim) float64: the upper triangle of what was seen, zeros below."""
        return self.triangle.triu()

    def packed(self) -> Tensor:
        """Return the state as a value: the upper triangle row by row, (kv_dim (kv_dim + 1) / 2,) float64."""
        rows, columns = torch.triu_indices(self.kv_dim, self.kv_dim, device=self.triangle.device)
        return self.current_triangle()[rows, columns]

    @classmethod
    def unpack(cls, packed: Tensor, kv_dim: int, tokens: int, device: torch.device | str = "cpu") -> Self:
        """Return the accumulator whose state this is.

        Args:
            packed: (kv_dim (kv_dim + 1) / 2,) float64, from `packed`.
            kv_dim: Columns of the matrix.
            tokens: Rows seen.
            device: Where the accumulator is to live.

        Raises:
            ValueError: The state has another size or dtype, or no such state can exist.
        """
        made = cls(kv_dim, device)
        if packed.shape != (kv_dim * (kv_dim + 1) // 2,) or packed.dtype != torch.float64 or tokens < 0:
            raise ValueError(f"state of {tuple(packed.shape)} {packed.dtype} and {tokens} tokens for kv_dim = {kv_dim}")
        rows, columns = torch.triu_indices(kv_dim, kv_dim, device=made.triangle.device)
        made.triangle[rows, columns] = packed.to(made.triangle.device)
        made.tokens = tokens
        return made

    def to(self, device: torch.device | str) -> Self:
        """Return the same on a device: itself, if it is there."""
        if torch.device(device) == self.triangle.device:
            return self
        return self.unpack(self.packed(), self.kv_dim, self.tokens, device)

    def singular_values(self) -> Tensor:
        """Return the singular values so far, (kv_dim,) float64 and descending, without the vectors.

        Raises:
            ValueError: No rows were seen, or one held a NaN or an infinity.
        """
        return self._at_most_tokens(self._values(self._checked()))

    def finish(self) -> Spectrum:
        """Decompose what was seen; further updates remain possible.

        Raises:
            ValueError: No rows were seen, or one held a NaN or an infinity.
        """
        values, vectors = self._values_and_vectors(self._checked())
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        return Spectrum(self._at_most_tokens(values), vectors * largest.sign(), self.tokens)

    def _add(self, rows: Tensor) -> None:
        width = min(-(-self.kv_dim // 4), _STRIP) if rows.device.type == "cpu" else self.kv_dim
        for start in range(0, self.kv_dim, width):
            strip = rows[:, start : start + width]
            self.triangle[start : start + width, start:].addmm_(strip.T, rows[:, start:])

    def _add_triangle(self, triangle: Tensor) -> None:
        self.triangle += triangle

    def _triangle_of_columns(self, start: int, stop: int) -> Tensor:
        return self.triangle[start:stop, start:stop].clone()

    def _values(self, triangle: Tensor) -> Tensor:
        eigenvalues: Tensor = torch.linalg.eigvalsh(triangle, UPLO="U")
        return eigenvalues.flip(0).clamp(min=0).sqrt()

    def _values_and_vectors(self, triangle: Tensor) -> tuple[Tensor, Tensor]:
        eigenvalues, vectors = torch.linalg.eigh(triangle, UPLO="U")
        return eigenvalues.flip(0).clamp(min=0).sqrt(), vectors.flip(1)

    def _checked(self) -> Tensor:
        if self.tokens == 0:
            raise ValueError("no rows were seen, so there is no spectrum")
        triangle = self.current_triangle()
        if not triangle.isfinite().all():
            raise ValueError("a NaN or an infinity among the rows, so there is no spectrum")
        return triangle

    def _at_most_tokens(self, values: Tensor) -> Tensor:
        values[self.tokens :] = 0  # n rows span n directions at most; what stands there is rounding
        return values
