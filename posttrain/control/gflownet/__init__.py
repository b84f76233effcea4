"""GFlowNets on graphs that can be enumerated: hypergrids, exact distributions, rollouts, Markov chains. Only torch."""
