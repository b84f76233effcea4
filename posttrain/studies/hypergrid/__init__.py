"""The hypergrid study: GFlowNet objectives, Markov chains and policy gradients that sample cells of a grid."""
