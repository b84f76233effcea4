"""`python -m posttrain`, the form that `accelerate launch -m posttrain oreo ...` needs."""

from posttrain.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
