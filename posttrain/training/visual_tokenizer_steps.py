"""One step of a visual tokenizer's training: first its tokens, then its renderer.

Stage 1 trains encoder, codebook and decoder together: Selftok by rectified flow with a token schedule, the spatial
controls by plain reconstruction. Its first steps do without quantisation: with a codebook that starts at random the
decoder stays at the mean picture. Then k-means of the encoder's vectors starts the codebook. Stage 2 freezes all that
and trains the renderer from the decoder's weights, on prefixes too: of these it learns the mean picture.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from posttrain.models.loading import device_named
from posttrain.training.visual_tokenizer_config import VisualTokenizerConfig
from posttrain.vision.pictures import draw_pictures
from posttrain.vision.prompts import split_prompts
from posttrain.vision.reconstruction import judge_tokenizer
from posttrain.vision.selftok import draw_flow, flow_loss
from posttrain.vision.tokenizer import VisualTokenizer

KMEANS_PICTURES = 1024
BETAS, WEIGHT_DECAY = (0.9, 0.99), 0.01


class VisualTokenizerSteps:
    """All that changes while a tokenizer is trained: networks, optimiser, and one random stream."""

    def __init__(self, config: VisualTokenizerConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)  # of the weights' initialisation alone
        self.device = device_named(config.device)
        self.tokenizer = VisualTokenizer(config.tokenizer()).train().to(self.device)
        self.generator = torch.Generator().manual_seed(config.seed)  # of the CPU: the same draws on any device
        prompts, self.held_out_prompts = split_prompts(config.world())
        _, images = draw_pictures(config.world(), prompts, config.n_scenes, self.generator)
        self.images = images.to(self.device)
        self.n_done = 0
        self.start_optimizer(step=0)

    def trained_parameters(self, step: int) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that the stage of `step` trains."""
        tokenizer = self.tokenizer
        if step >= self.config.n_steps or tokenizer.flow is None:
            parts = ("renderer.",) if step >= self.config.n_steps else ("encoder.", "renderer.")
        else:
            parts = ("encoder.", "flow.")
        return [(name, parameter) for name, parameter in tokenizer.named_parameters() if name.startswith(parts)]

    def start_optimizer(self, step: int) -> None:
        """A new optimiser, for the stage of `step`."""
        parameters = [parameter for _, parameter in self.trained_parameters(step)]
        self.optimizer = AdamW(
            parameters, lr=self.config.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
        )

    def _learning_rate(self, step: int) -> float:
        """A linear rise, then half a cosine to 0, in each stage anew."""
        config = self.config
        is_tokens = step < config.n_steps
        done, total = (step, config.n_steps) if is_tokens else (step - config.n_steps, config.n_renderer_steps)
        rise = min(1.0, (done + 1) / max(1, config.n_warmup_steps))
        return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * done / total))

    def step(self, step: int) -> dict[str, Tensor]:
        """One step of the stage that `step` belongs to; its losses."""
        if step == self.config.n_steps:
            self.tokenizer.start_renderer()
            self.start_optimizer(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        chosen = torch.randint(len(self.images), (self.config.batch_size,), generator=self.generator)
        images = self.images[chosen.to(self.device)]
        losses = self._token_step(step, images) if step < self.config.n_steps else self._renderer_step(images)
        self.n_done = step + 1
        return losses

    def evaluate(self) -> dict[str, float]:
        """The measures of `judge_tokenizer` on scenes of held-out prompts."""
        self.tokenizer.eval()
        n_pictures, seed = self.config.n_eval_scenes, self.config.seed
        report = judge_tokenizer(self.tokenizer, self.held_out_prompts, n_pictures=n_pictures, seed=seed)
        self.tokenizer.train()
        return report.to_dict()

    def state(self) -> dict[str, Any]:
        """What the next step depends on."""
        return {
            "n_done": self.n_done,
            "generator": self.generator.get_state(),
            "tokenizer": self.tokenizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.n_done = state["n_done"]
        self.generator.set_state(state["generator"])
        self.tokenizer.load_state_dict(state["tokenizer"])
        self.start_optimizer(self.n_done - 1)  # at the border of the stages, the next step makes the next optimiser
        self.optimizer.load_state_dict(state["optimizer"])

    def _token_step(self, step: int, images: Tensor) -> dict[str, Tensor]:
        quantiser = self.tokenizer.quantiser
        if step == self.config.n_continuous_steps:
            with torch.no_grad():
                quantiser.start_from(self.tokenizer.encoder(self.images[:KMEANS_PICTURES]), self.generator)
        z = self.tokenizer.encoder(images)
        if step < self.config.n_continuous_steps:
            loss = self._reconstruction(images, z)
            self._descend(loss)
            return {"reconstruction": loss.detach()}
        quantised = quantiser(z)
        loss = self._reconstruction(images, quantised.codes)
        self._descend(loss + quantised.commit + self.config.diversity_weight * quantised.diversity)
        n_dead = quantiser.update(z, quantised.ids, self.generator)
        return {
            "reconstruction": loss.detach(),
            "commit": quantised.commit.detach(),
            "diversity": quantised.diversity.detach(),
            "dead_codes": torch.tensor(float(n_dead)),
        }

    def _reconstruction(self, images: Tensor, codes: Tensor) -> Tensor:
        """What the codes are trained for: the flow's loss, or of spatial tokens the renderer's."""
        flow, networks = self.tokenizer.flow, self.tokenizer.config
        if flow is None:
            return F.mse_loss(self.tokenizer.renderer(codes, self._visible_prefixes(len(images), share=0.0)), images)
        draw = draw_flow(
            images,
            share_at_noise=self.config.share_at_noise,
            p_drop=self.config.p_drop,
            generator=self.generator,
        )
        return flow_loss(flow, images, codes, draw, schedule=networks.schedule, shift=networks.shift)

    def _renderer_step(self, images: Tensor) -> dict[str, Tensor]:
        quantiser = self.tokenizer.quantiser
        with torch.no_grad():
            codes = quantiser.lookup(quantiser.nearest(self.tokenizer.encoder(images)))
        is_visible = self._visible_prefixes(len(images), share=self.config.share_of_prefixes)
        loss = F.mse_loss(self.tokenizer.renderer(codes, is_visible), images)
        self._descend(loss)
        return {"render": loss.detach()}

    def _visible_prefixes(self, n: int, *, share: float) -> Tensor:
        """[n, K] bool in index order: all tokens, and of a share of the rows an AR prefix of 0 to K − 1 tokens."""
        n_tokens = self.tokenizer.n_tokens
        lengths = torch.full((n,), n_tokens)
        n_prefixes = round(share * n)
        lengths[:n_prefixes] = torch.randint(n_tokens, (n_prefixes,), generator=self.generator)
        return self.tokenizer.config.order.from_ar(torch.arange(n_tokens) < lengths.unsqueeze(1)).to(self.device)

    def _descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        parameters = self.optimizer.param_groups[0]["params"]
        nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm, error_if_nonfinite=True)
        self.optimizer.step()
