"""BEER (arXiv 2404.12754): what its penalty does to a critic, on a grid with exact values and on control tasks."""
