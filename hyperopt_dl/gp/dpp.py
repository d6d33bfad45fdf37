"""Determinantal point processes of fixed size: diverse subsets of candidates.

    P(Y) ∝ det L_Y for the subsets Y of k elements,    L [m, m] positive semidefinite

    λ_i, v_i  eigenvalues and eigenvectors of L        e_k  elementary symmetric polynomial of them

With L a posterior covariance, a likely subset is one whose values are uncertain and unrelated.

Source: Kulesza and Taskar, "k-DPPs: Fixed-Size Determinantal Point Processes", ICML 2011.
"""

import torch
from torch import Tensor

_RANK = 1e-10  # of the largest eigenvalue: below it an eigenvalue is rounding


def sample_dpp(L: Tensor, k: int, *, generator: torch.Generator) -> Tensor:
    """Return the indices ``[k]`` of a random subset.

    First k eigenvectors are drawn, with probability proportional to the product of their
    eigenvalues; then k elements one by one, each with probability proportional to its squared
    length in the space that is left of those eigenvectors. Costs O(m³).

    Where fewer than k eigenvalues are above rounding, every subset of k has probability 0: the
    subset drawn has as many elements as there are such eigenvalues.
    """
    eigenvalues, vectors = torch.linalg.eigh(L)
    real = eigenvalues > _RANK * eigenvalues.max()
    chosen = _eigenvectors(eigenvalues[real], min(k, int(real.sum())), generator)
    V = vectors[:, real][:, chosen]
    items: list[int] = []
    while V.shape[1]:
        lengths = V.square().sum(-1).clamp(min=0)
        i = int(torch.multinomial(lengths / lengths.sum(), 1, generator=generator))
        items.append(i)
        pivot = int(V[i].abs().argmax())
        V = V - torch.outer(V[:, pivot] / V[i, pivot], V[i])
        V = torch.cat([V[:, :pivot], V[:, pivot + 1 :]], 1)
        V = torch.linalg.qr(V).Q
    return torch.tensor(items, dtype=torch.long)


def greedy_dpp(L: Tensor, k: int) -> Tensor:
    """Return the indices ``[k]`` of the subset that grows by the element that adds most to det L_Y.

    That is the element of the largest variance given those before it ("pure exploration"); ends
    early where all that is left is certain. Costs O(m k²).
    """
    variance = L.diagonal().clone()
    floor = _RANK * float(variance.max())
    rows, items = L.new_zeros(0, len(L)), list[int]()
    for _ in range(min(k, len(L))):
        i = int(variance.argmax())
        if variance[i] <= floor:
            break
        row = (L[i] - rows[:, i] @ rows) / variance[i].sqrt()
        variance = variance - row.square()
        variance[i] = -torch.inf
        rows = torch.cat([rows, row.unsqueeze(0)])
        items.append(i)
    return torch.tensor(items, dtype=torch.long)


def _eigenvectors(eigenvalues: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw k of the eigenvectors, by their elementary symmetric polynomials."""
    logs = eigenvalues.log().tolist()
    table = log_symmetric_polynomials(eigenvalues, k)
    chosen: list[int] = []
    u = torch.rand(len(logs), generator=generator, dtype=torch.float64).log().tolist()
    for i in range(len(logs) - 1, -1, -1):
        missing = k - len(chosen)
        if missing == 0:
            break
        # P(v_i is among those missing) = λ_i e_{missing - 1}(λ before i) / e_missing(λ up to i)
        if u[i] < logs[i] + float(table[i, missing - 1] - table[i + 1, missing]):
            chosen.append(i)
    return torch.tensor(chosen, dtype=torch.long)


def log_symmetric_polynomials(values: Tensor, k: int) -> Tensor:
    """Return log e_j of the first i of ``[m]`` positive values, ``[m + 1, k + 1]`` by i and j."""
    table = values.new_full((len(values) + 1, k + 1), -torch.inf)
    table[:, 0] = 0
    for i, log in enumerate(values.log()):
        table[i + 1, 1:] = torch.logaddexp(table[i, 1:], log + table[i, :-1])
    return table
