"""A message-passing network over the tree of blocks: scores for adding a block, for stopping, for taking one off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from posttrain.studies.molecules.encoding import MoleculeBatch, MoleculeEncoder


@dataclass(frozen=True, slots=True)
class Scores:
    """Of G molecules, W sites at most, A blocks."""

    logits: Tensor  # [G, W * A + 1] column site * A + block adds, the last one stops; −inf where that is not legal
    value: Tensor  # [G] an estimate for the whole molecule
    removal: Tensor  # [N] of taking off each node, in the order of the batch's nodes


class MoleculeNetwork(nn.Module):
    """Messages run along directed bonds. A bond out of a node hears the bonds into it, each through a vector for their
    pair of atoms, so that ortho, meta and para differ; a site hears the bonds into its node in the same way."""

    def __init__(self, encoder: MoleculeEncoder, *, width: int, n_rounds: int) -> None:
        super().__init__()
        blocks = encoder.environment.blocks
        self.n_blocks, self.n_rounds = len(blocks), n_rounds
        self.fragment = nn.Embedding(len(blocks.fragments), width)
        self.atom = nn.Embedding(encoder.n_atoms, width)
        self.far_atom = nn.Embedding(encoder.n_atoms, width)
        self.stem = nn.Embedding(encoder.n_atoms, width)
        self.pair = nn.Embedding(encoder.n_pairs, width)
        nn.init.normal_(self.pair.weight, mean=1.0, std=0.5)  # a pair that says nothing passes messages on as they are
        self.size = nn.Embedding(encoder.environment.max_blocks + 1, width)
        self.turn = nn.Linear(width, width)
        self.node = nn.Linear(width, width)
        self.site = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, len(blocks)))
        self.whole = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU())
        self.stop, self.worth = nn.Linear(width, 1), nn.Linear(width, 1)
        self.take_off = nn.Linear(width, 1)

    def forward(self, batch: MoleculeBatch) -> Scores:
        base = self.fragment(batch.node_fragment).index_add(0, batch.stem_node, self.stem(batch.stem_atom))
        messages = self._messages(batch, base)
        nodes = F.leaky_relu(self.node(base.index_add(0, batch.bond_target, messages)))
        empty = nodes.new_zeros(len(batch.n_blocks), nodes.shape[-1])
        graphs = self.whole(empty.index_add(0, batch.node_graph, nodes) + self.size(batch.n_blocks))
        seen = messages[batch.view_from] * self.pair(batch.view_pair)
        sites = (nodes + graphs[batch.node_graph])[batch.site_node] + self.atom(batch.site_atom)
        first = self.whole(self.size.weight[:1])  # the empty molecule's one site
        adding = self.site(torch.cat((sites.index_add(0, batch.view_site, seen), first)))
        adding = torch.cat((adding, adding.new_full((1, self.n_blocks), -torch.inf)))
        stop = torch.where(batch.may_stop, self.stop(graphs).squeeze(-1), -torch.inf)
        logits = torch.cat((adding[batch.site_row].flatten(1), stop[:, None]), dim=-1)
        return Scores(logits, self.worth(graphs).squeeze(-1), self.take_off(nodes).squeeze(-1))

    def _messages(self, batch: MoleculeBatch, base: Tensor) -> Tensor:
        """[E, width] what each directed bond carries to its target."""
        sent = base[batch.bond_source] + self.atom(batch.bond_out) + self.far_atom(batch.bond_in)
        pair = self.pair(batch.turn_pair)
        messages = F.leaky_relu(self.turn(sent))
        for _ in range(self.n_rounds - 1):
            heard = sent.index_add(0, batch.turn_to, messages[batch.turn_from] * pair)
            messages = F.leaky_relu(self.turn(heard))
        return messages
