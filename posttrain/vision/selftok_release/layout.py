"""What is known of the published Selftok files: sizes, the token schedule, and keys that a decoder does not need.

Source: the code and the two evaluation configs of github.com/selftok-team/SelftokTokenizer at 4695474 and c782091. The
weight files themselves were not read; `UNCONFIRMED` lists what the code alone cannot settle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# The reference numbers time 0 to 1000, and gives token k the "time" 1000 + 8 k, beyond every noise level.
N_TIMES = 1000
FIRST_POSITION, POSITION_STEP = 1000, 8
N_FREQUENCIES = 256  # sines and cosines of a time or a position


@dataclass(frozen=True, slots=True)
class ReleaseSizes:
    """The networks of one published variant."""

    n_tokens: int  # K
    k_per_stage: tuple[int, ...]  # indexes revealed in each equal part of the time, from t = 0 to t = 1; sums to K
    codebook_size: int
    code_dim: int
    latent_channels: int
    latent_px: int  # side of the latent image: 256 px / 8
    patch: int  # side of a patch, in latent pixels
    image_width: int  # of the encoder's image stream
    image_heads: int
    query_width: int  # of the encoder's query stream
    query_heads: int
    n_encoder_blocks: int
    encoder_grid: int  # side of the encoder's table of positions, of which the middle is used
    decoder_width: int
    decoder_heads: int
    n_decoder_blocks: int
    decoder_grid: int  # side of the flow decoder's table of positions

    def __post_init__(self) -> None:
        if sum(self.k_per_stage) != self.n_tokens or N_TIMES % len(self.k_per_stage):
            raise ValueError(
                f"k_per_stage {self.k_per_stage} of {self.n_tokens} tokens: the stages sum to the number of tokens, "
                f"and their number divides {N_TIMES}"
            )
        if self.latent_px % self.patch or self.side > min(self.encoder_grid, self.decoder_grid):
            raise ValueError(
                f"latents of {self.latent_px} px in patches of {self.patch}, tables of positions of "
                f"{self.encoder_grid} and {self.decoder_grid}: patches divide the latents and fit into both tables"
            )

    @property
    def side(self) -> int:
        """Patches along one side of an image."""
        return self.latent_px // self.patch


SELFTOK_512 = ReleaseSizes(
    n_tokens=512,
    k_per_stage=(192, 184, 72, 48, 16),
    codebook_size=32768,
    code_dim=16,
    latent_channels=16,
    latent_px=32,
    patch=2,
    image_width=64,
    image_heads=4,
    query_width=512,
    query_heads=8,
    n_encoder_blocks=16,
    encoder_grid=64,
    decoder_width=1536,
    decoder_heads=24,
    n_decoder_blocks=24,
    decoder_grid=192,
)
SELFTOK_1024 = replace(SELFTOK_512, n_tokens=1024, k_per_stage=(384, 368, 144, 96, 32))
PUBLISHED = {sizes.n_tokens: sizes for sizes in (SELFTOK_512, SELFTOK_1024)}

# Our name -> the file's name, where they differ.
RENAMED = {"encoder.codes": "encoder.quantizer._codebook.embed"}

# Keys of the files that decide nothing once training is over: prefix -> why it is left out.
UNUSED = {
    "diffusion.": "the training schedule's tables; sampling makes its own",
    "encoder.final_layer_norm.": "built, but switched off by pre_norm: False",
    "encoder.final_layer_norm2.": "built, but no forward pass reads it",
    "encoder.quantizer._codebook.cluster_size": "count of the moving average",
    "encoder.quantizer._codebook.cluster_size_wo_react": "count of the moving average",
    "encoder.quantizer._codebook.embed_avg": "sum of the moving average",
    "encoder.quantizer._codebook.initted": "flag of the k-means start",
    "encoder.quantizer._codebook.timestep_p_over_c": "code use by position, of the entropy regulariser",
    "encoder.quantizer._codebook.tpc_initted": "flag of the former",
    "encoder.quantizer.continuous": "flag of the warm-up without quantisation",
    "encoder.quantizer.count": "code use, for the log",
    "encoder.quantizer.steps": "count of training steps",
    "model.y_embedder.": "SD3's label input; the decoder is never given a label",
}
UNUSED_BY_RENDERER = {"model.pos_embed": "the renderer has its own `positional_embedding`"}

# What the code leaves open. Loading is strict, so a wrong guess is an error with the keys' names, never a silent gap.
UNCONFIRMED = (
    "that the .pth files are flat dictionaries with exactly these keys: the reference loads them with strict=False, "
    "which accepts missing and unexpected keys",
    "the dtype of the stored weights; they are cast to the dtype asked for",
    "the schedule of the 1024-token variant: no config of it is published, so k_per_stage is the 512-token table, "
    "doubled. Encoding and the renderer do not use it",
    "the shape of the renderer's mask_token: one config says [1, 1, 1536], an older one implies [1, 256, 1536]; "
    "both load",
)


def unused_keys(sizes: ReleaseSizes, *, is_renderer: bool) -> tuple[str, ...]:
    """Prefixes of keys that a file may have and no network here wants."""
    # The last block ends the token stream: it is modulated by the time, so its embedding of positions is never read.
    last = f"model.joint_blocks.{sizes.n_decoder_blocks - 1}.context_block.t_embedder."
    return (*UNUSED, last, *(UNUSED_BY_RENDERER if is_renderer else ()))


def kappa(step: int, k_per_stage: tuple[int, ...]) -> int:
    """The last token index that is visible at time t = step / 1000; t = 1 is noise, and shows all.

        kappa = min(K − 1, sum_{r<s} k_r + floor((step − s w) k_s / w)),   w = 1000 / stages, s = floor(step / w)

    In whole numbers, so exact at the edges of the stages.
    """
    width = N_TIMES // len(k_per_stage)
    stage = min(step // width, len(k_per_stage) - 1)
    inside = (step - stage * width) * k_per_stage[stage] // width
    return min(sum(k_per_stage[:stage]) + inside, sum(k_per_stage) - 1)
