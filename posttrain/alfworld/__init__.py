"""ALFWorld text games: the real TextWorld engine, agents without a model, a fast simulator, new games and episodes."""
