"""The published predictor of binding to soluble epoxide hydrolase (sEH), read from plain arrays; torch alone.

A message-passing network over atoms (Bengio et al. 2021, arXiv 2106.04399, A.4), trained by its authors on 300,000
docking scores in units where 8 stands for −13 kcal/mol. The reward of their experiments is (max(score, 0.1) / 8)^10.

    h ← LeakyReLU(W x)                                            x: 71 features of an atom
    12 times: m_v = mean over bonds (u, v) of h_u E[kind of bond] + h_v Rᵀ + b;  h ← GRU(LeakyReLU(m), h)
    score = w · Set2Set(h), three rounds

A bond's kind is one-hot, so the network that makes its 64 x 64 matrix is evaluated once for each of the four kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_FEATURES, WIDTH, N_ROUNDS, N_READOUTS = 71, 64, 12, 3
N_BOND_KINDS, MAX_ATOMIC_NUMBER = 4, 56
_TYPES = {"H": 0, "C": 1, "N": 2, "O": 3, "F": 4}
_OTHER_TYPE, _AROMATIC, _SP, _N_HYDROGENS, _ATOMIC_NUMBER, _STEM = 5, 9, 10, 13, 14, 70
_SHAPES = {  # array of the file -> (place in the network, shape)
    "p00": ("embed.weight", (64, 71)),
    "p01": ("embed.bias", (64,)),
    "p02": ("root.weight", (64, 64)),  # of a linear layer: h Rᵀ. Read as h R, scores correlate 0.79 with the published
    "p03": ("root.bias", (64,)),
    "p04": ("bond.0.weight", (128, 4)),
    "p05": ("bond.0.bias", (128,)),
    "p06": ("bond.2.weight", (4096, 128)),
    "p07": ("bond.2.bias", (4096,)),
    "p08": ("update.weight_ih", (192, 64)),
    "p09": ("update.weight_hh", (192, 64)),
    "p10": ("update.bias_ih", (192,)),
    "p11": ("update.bias_hh", (192,)),
    "p16": ("readout.weight_ih", (256, 128)),  # p12 to p15 score stems, which nothing here needs
    "p17": ("readout.weight_hh", (256, 64)),
    "p18": ("readout.bias_ih", (256,)),
    "p19": ("readout.bias_hh", (256,)),
    "p20": ("score.weight", (1, 128)),
    "p21": ("score.bias", (1,)),
}


@dataclass(frozen=True, slots=True)
class AtomGraphs:
    """G molecules laid end to end: N atoms, E directed bonds."""

    features: Tensor  # [N, 71]
    graph: Tensor  # [N] int64: the molecule of each atom, ascending
    source: Tensor  # [E] int64, the bonds in the order of their kinds
    target: Tensor  # [E] int64
    n_of_kind: tuple[int, ...]  # bonds of each kind: single, double, triple, aromatic
    n_graphs: int


class SehProxy(nn.Module):
    """Scores of molecules; higher binds better."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(N_FEATURES, WIDTH)
        self.root = nn.Linear(WIDTH, WIDTH)
        self.bond = nn.Sequential(nn.Linear(N_BOND_KINDS, 128), nn.LeakyReLU(), nn.Linear(128, WIDTH * WIDTH))
        self.update = nn.GRUCell(WIDTH, WIDTH)
        self.readout = nn.LSTMCell(2 * WIDTH, WIDTH)
        self.score = nn.Linear(2 * WIDTH, 1)

    @classmethod
    def read(cls, path: Path) -> SehProxy:
        """The network with the published weights, arrays p00 to p21 of an .npz file. Raises ValueError."""
        proxy = cls()
        with np.load(path, allow_pickle=False) as arrays:
            state: dict[str, Tensor] = {}
            for array, (name, shape) in _SHAPES.items():
                if array not in arrays or arrays[array].shape != shape:
                    found = arrays[array].shape if array in arrays else "missing"
                    raise ValueError(f"{path}: {array} is {found}, needed {shape}: is this the sEH proxy?")
                state[name] = torch.from_numpy(arrays[array])
        proxy.load_state_dict(state)
        return proxy.eval().requires_grad_(False)

    def forward(self, graphs: AtomGraphs) -> Tensor:
        """[G] scores."""
        h = F.leaky_relu(self.embed(graphs.features))
        matrices = self.bond(torch.eye(N_BOND_KINDS, dtype=h.dtype)).view(N_BOND_KINDS, WIDTH, WIDTH)
        degree = torch.zeros(len(h), dtype=h.dtype).index_add(0, graphs.target, h.new_ones(len(graphs.target)))
        per_bond = degree.reciprocal()[graphs.target][:, None]
        for _ in range(N_ROUNDS):
            by_kind = h[graphs.source].split(graphs.n_of_kind)
            messages = torch.cat([sent @ matrix for sent, matrix in zip(by_kind, matrices, strict=True)])
            h = self.update(F.leaky_relu(self.root(h).index_add(0, graphs.target, messages * per_bond)), h)
        return self.score(self._read_out(h, graphs)).squeeze(-1)

    def _read_out(self, h: Tensor, graphs: AtomGraphs) -> Tensor:
        """[G, 2 * width] Set2Set: an LSTM asks, attention over the molecule's atoms answers (arXiv 1511.06391)."""
        asked = h.new_zeros(graphs.n_graphs, WIDTH)
        memory = torch.zeros_like(asked)
        found = h.new_zeros(graphs.n_graphs, 2 * WIDTH)
        for _ in range(N_READOUTS):
            asked, memory = self.readout(found, (asked, memory))
            weight = _softmax_by_graph((h * asked[graphs.graph]).sum(-1), graphs)
            answer = torch.zeros_like(asked).index_add(0, graphs.graph, weight[:, None] * h)
            found = torch.cat((asked, answer), dim=-1)
        return found


def _softmax_by_graph(x: Tensor, graphs: AtomGraphs) -> Tensor:
    highest = x.new_full((graphs.n_graphs,), -torch.inf).scatter_reduce(0, graphs.graph, x, "amax")
    weight = (x - highest[graphs.graph]).exp()
    return weight / x.new_zeros(graphs.n_graphs).index_add(0, graphs.graph, weight)[graphs.graph]


def atom_graphs(mols: Sequence[tuple[Any, Sequence[int]]]) -> AtomGraphs:
    """RDKit molecules, each with its atoms that have a stem, as the proxy reads them.

    Where a molecule has none, its first atom is marked instead, as in the proxy's training data. Raises ValueError for
    an element beyond barium.
    """
    rows: list[np.ndarray] = []
    bonds: list[list[tuple[int, int]]] = [[] for _ in range(N_BOND_KINDS)]
    graph: list[int] = []
    n_atoms = 0
    for index, (mol, stems) in enumerate(mols):
        rows.append(_features(mol, stems))
        for bond in mol.GetBonds():
            ends = (n_atoms + bond.GetBeginAtomIdx(), n_atoms + bond.GetEndAtomIdx())
            kind = 3 if bond.GetIsAromatic() else int(bond.GetBondTypeAsDouble()) - 1
            bonds[kind] += [ends, ends[::-1]]
        graph += [index] * mol.GetNumAtoms()
        n_atoms += mol.GetNumAtoms()
    ends = torch.tensor([pair for of_kind in bonds for pair in of_kind], dtype=torch.int64).view(-1, 2)
    return AtomGraphs(
        torch.from_numpy(np.concatenate(rows)),
        torch.tensor(graph),
        ends[:, 0],
        ends[:, 1],
        tuple(len(of_kind) for of_kind in bonds),
        len(mols),
    )


def _features(mol: Any, stems: Sequence[int]) -> np.ndarray:
    features = np.zeros((mol.GetNumAtoms(), N_FEATURES), dtype=np.float32)
    for atom, row in zip(mol.GetAtoms(), features, strict=True):
        number, hybridisation = atom.GetAtomicNum(), str(atom.GetHybridization())
        if number > MAX_ATOMIC_NUMBER:
            raise ValueError(
                f"{atom.GetSymbol()} has atomic number {number}; the proxy knows 1 to {MAX_ATOMIC_NUMBER}"
            )
        row[_TYPES.get(atom.GetSymbol(), _OTHER_TYPE)] = 1.0
        row[_AROMATIC] = atom.GetIsAromatic()
        if hybridisation in ("SP", "SP2", "SP3"):
            row[_SP + ("SP", "SP2", "SP3").index(hybridisation)] = 1.0
        row[_N_HYDROGENS] = atom.GetTotalNumHs(includeNeighbors=True)
        row[_ATOMIC_NUMBER + number - 1] = 1.0
    features[list(stems) or [0], _STEM] = 1.0
    return features
