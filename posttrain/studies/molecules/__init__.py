"""GFlowNets, and the methods they are compared with, on molecules assembled from blocks."""
