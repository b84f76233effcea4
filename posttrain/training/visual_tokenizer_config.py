"""Options of `posttrain vision train`, and the tokenizer that they describe."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from posttrain.vision.image_metrics import WINDOW_PX
from posttrain.vision.token_schedule import (
    FIFTHS,
    TokenSchedule,
    all_visible,
    information_schedule,
    selftok_schedule,
    uniform_schedule,
)
from posttrain.vision.tokenizer import TokenizerConfig, TokenizerKind
from posttrain.vision.world import World


class ScheduleName(StrEnum):
    STAGES = "stages"
    SELFTOK = "selftok"
    UNIFORM = "uniform"
    INFORMATION = "information"
    ALL_VISIBLE = "all_visible"


def _option(help: str, default: object, group: str) -> Any:
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True, slots=True)
class VisualTokenizerConfig:
    """Train a visual tokenizer and its one-step renderer on drawn pictures. Run again to go on after a stop."""

    output_dir: Path = field(metadata={"help": "Run folder: the tokenizer, metrics.jsonl, run.json and checkpoints."})
    kind: TokenizerKind = field(
        default=TokenizerKind.SELFTOK,
        metadata={
            "help": "selftok: queries, coarse to fine; cells: a token per patch; shifted: patches half a patch off.",
            "group": "tokens",
        },
    )
    n_tokens: int = _option("Tokens of a picture (K); of cells and shifted, the number of patches.", 9, "tokens")
    schedule: ScheduleName = field(
        default=ScheduleName.STAGES,
        metadata={
            "help": "Which tokens a time may see. stages: --k_per_stage; selftok: the paper's table; uniform; "
            "information: by the bits that noise takes; all_visible: no schedule.",
            "group": "tokens",
        },
    )
    k_per_stage: tuple[int, ...] = _option("Tokens that each fifth of the time reveals.", (2, 2, 2, 2, 1), "tokens")
    information_gain: float = _option("Of schedule information: squared distance of two contents.", 27.0, "tokens")
    information_bits: float = _option("Of schedule information: entropy of a part.", 3.7, "tokens")
    codebook_size: int = _option("Codes.", 256, "tokens")
    code_dim: int = _option("Dimensions of a code.", 8, "tokens")
    ema_decay: float = _option("Of the codebook's moving average.", 0.97, "tokens")
    reset_ratio: float = _option("A code with fewer uses than this share of the mean is replaced.", 0.1, "tokens")
    width: int = _option("Of encoder and decoder.", 64, "networks")
    n_heads: int = _option("Attention heads.", 4, "networks")
    n_encoder_blocks: int = _option("Blocks of the encoder.", 2, "networks")
    n_decoder_blocks: int = _option("Blocks of the decoder, and of the renderer.", 3, "networks")
    patch_px: int = _option("Side of a patch.", 4, "networks")
    n_steps: int = _option("Steps of the tokens' training.", 3000, "training")
    n_continuous_steps: int = _option("First steps of these, without quantisation.", 1000, "training")
    n_renderer_steps: int = _option("Steps of the renderer's training; the tokens are frozen.", 500, "training")
    batch_size: int = _option("Pictures of a step.", 32, "training")
    learning_rate: float = _option("Peak of AdamW's; it falls to 0 along a cosine.", 2e-3, "training")
    n_warmup_steps: int = _option("Steps over which the learning rate rises.", 50, "training")
    max_grad_norm: float = _option("Gradients are cut to this norm.", 1.0, "training")
    diversity_weight: float = _option("Of the entropy of code use.", 0.1, "training")
    shift: float = _option("Of the noise levels; above 1 spends more time on strong noise.", 4.0, "training")
    share_at_noise: float = _option("Share of a batch at pure noise, where tokens must tell all.", 0.25, "training")
    p_drop: float = _option("Probability that all tokens are hidden, which guidance needs.", 0.1, "training")
    share_of_prefixes: float = _option("Share of the renderer's batch that shows a prefix only.", 0.25, "training")
    seed: int = _option("Of weights, pictures and noise.", 0, "training")
    n_scenes: int = _option("Scenes drawn for training, evenly from the families of prompts.", 16384, "data")
    n_eval_scenes: int = _option("Scenes of held-out prompts for the last evaluation.", 512, "data")
    n_cells: int = _option("Cells per side of the world.", 3, "data")
    cell_px: int = _option("Side of a cell.", 4, "data")
    shapes: tuple[str, ...] = _option("Shapes of the world.", World().shapes, "data")
    colours: tuple[str, ...] = _option("Colours of the world.", World().colours, "data")
    logging_steps: int = _option("Steps between two lines of metrics.jsonl.", 100, "run")
    checkpoint_steps: int = _option("Steps between two checkpoints.", 1000, "run")
    n_threads: int = _option("Threads of torch; one is fastest for small networks.", 1, "run")
    device: str = _option("cpu, cuda, ...; auto takes CUDA where there is one.", "auto", "run")

    def __post_init__(self) -> None:
        if self.world().image_px < WINDOW_PX:
            raise ValueError(
                f"n_cells {self.n_cells} of cell_px {self.cell_px}: pictures of {self.world().image_px} px are too "
                f"small for the evaluation, whose SSIM reads windows of {WINDOW_PX} px"
            )
        if not 0 <= self.n_continuous_steps < self.n_steps:
            raise ValueError(
                f"n_continuous_steps {self.n_continuous_steps} of n_steps {self.n_steps}: some steps must quantise"
            )
        if self.n_renderer_steps < 1 or self.batch_size < 1 or self.n_scenes < 1 or self.checkpoint_steps < 1:
            raise ValueError("n_renderer_steps, batch_size, n_scenes and checkpoint_steps are at least 1")

    @property
    def total_steps(self) -> int:
        return self.n_steps + self.n_renderer_steps

    def world(self) -> World:
        return World(self.n_cells, self.cell_px, self.shapes, self.colours)

    def tokenizer(self) -> TokenizerConfig:
        """The networks; raises ValueError where sizes do not fit one another."""
        return TokenizerConfig(
            kind=self.kind,
            world=self.world(),
            schedule=self._schedule(),
            shift=self.shift,
            codebook_size=self.codebook_size,
            code_dim=self.code_dim,
            width=self.width,
            n_heads=self.n_heads,
            n_encoder_blocks=self.n_encoder_blocks,
            n_decoder_blocks=self.n_decoder_blocks,
            patch_px=self.patch_px,
            ema_decay=self.ema_decay,
            reset_ratio=self.reset_ratio,
        )

    def _schedule(self) -> TokenSchedule:
        if self.kind is not TokenizerKind.SELFTOK:
            return all_visible(self.n_tokens)
        match self.schedule:
            case ScheduleName.STAGES:
                return self._given_stages()
            case ScheduleName.SELFTOK:
                return selftok_schedule(self.n_tokens)
            case ScheduleName.UNIFORM:
                return uniform_schedule(self.n_tokens)
            case ScheduleName.ALL_VISIBLE:
                return all_visible(self.n_tokens)
            case ScheduleName.INFORMATION:
                return information_schedule(
                    self.n_tokens, gain=self.information_gain, max_bits=self.information_bits, shift=self.shift
                )

    def _given_stages(self) -> TokenSchedule:
        if len(self.k_per_stage) != len(FIFTHS) - 1 or sum(self.k_per_stage) != self.n_tokens:
            raise ValueError(
                f"k_per_stage {self.k_per_stage} with n_tokens {self.n_tokens}: five counts whose sum is n_tokens"
            )
        return TokenSchedule(FIFTHS, self.k_per_stage)
