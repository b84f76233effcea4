"""The methods of the study by name."""

from __future__ import annotations

from enum import StrEnum

from posttrain.studies.hypergrid.flow_learner import Balance, FlowMethod
from posttrain.studies.hypergrid.flow_model import Backward


class Baseline(StrEnum):
    MCMC = "mcmc"
    MCMC_NO_HASTINGS = "mcmc_no_hastings"  # the paper's code: biased where cells have different numbers of neighbours
    MARS = "mars"
    PPO = "ppo"
    SOFT_PPO = "soft_ppo"  # its reward has log P_B: it does sample R/Z


FLOW_METHODS = {
    "fm": FlowMethod(Balance.FLOW_MATCHING),
    "fm_all": FlowMethod(Balance.FLOW_MATCHING_ALL),
    "db": FlowMethod(Balance.DETAILED),
    "tb": FlowMethod(Balance.TRAJECTORY),
    "subtb": FlowMethod(Balance.SUB_TRAJECTORY),
    "vargrad": FlowMethod(Balance.VAR_GRAD),
    "tb_learned_pb": FlowMethod(Balance.TRAJECTORY, Backward.LEARNED),
    "tb_max_entropy_pb": FlowMethod(Balance.TRAJECTORY, Backward.MAX_ENTROPY),
    "tb_explore": FlowMethod(Balance.TRAJECTORY, exploration=0.05),
    "tb_replay": FlowMethod(Balance.TRAJECTORY, replay=0.5),
}
METHODS = (*FLOW_METHODS, *(baseline.value for baseline in Baseline))
