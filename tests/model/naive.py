"""AFSST as its equations read, with a copy at every step: the oracle of the tests and the yardstick of `benchmarks/step.py`.

It shares nothing with the network but the weights: 1x1 convolutions over (B, C, H, W), windows cut out by copying, queries and keys that
are normalised before their product, explicit masks and softmax. Gradients flow through it. For a fair time give it a network in plain
memory order (`network.to(memory_format=torch.contiguous_format)`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - the ecosystem's name
from torch import Tensor, nn

from sereno.model.attention import MaskEmbedding, ParallelAttention, SpectralAttention, TransformerBlock, TransformerStage, WindowAttention
from sereno.model.frequency import SpatialFrequencyFusion
from sereno.model.layers import ConcatFusion, FusionGate, MultiscaleSar, PixelFusion, SobelEdges, smooth_fill
from sereno.model.networks.afsst import Afsst


def naive_forward(network: Afsst, optical: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:
    """What `network(optical, sar, cloud)` gives: (B, C, H, W)."""
    mean, std = network.mean[None, :, None, None], network.std[None, :, None, None]
    rows, columns = optical.shape[2:]
    filled = smooth_fill(optical, 1 - cloud, network.mean) if network.base == "filled" else optical
    seen = [torch.asinh((optical - mean) / std)]
    if network.base == "filled":
        seen.append(torch.asinh((filled - mean) / std))
    images, echo, sky = (pad(part, network.step_px) for part in (torch.cat([*seen, cloud], dim=1), (sar - 0.5) / 0.2, cloud))
    change = F.pixel_shuffle(restore(network, images, echo, sky), network.stem_px)
    return filled + std * change[:, :, :rows, :columns]


def pad(image: Tensor, step_px: int) -> Tensor:
    down, across = (-extent % step_px for extent in image.shape[2:])
    mode = "reflect" if down < image.shape[2] and across < image.shape[3] else "replicate"
    return F.pad(image, (0, across, 0, down), mode=mode).contiguous()


def restore(network: Afsst, images: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:
    stream, levels, skies = network.embed(images), [], [F.avg_pool2d(cloud, network.stem_px)]
    echo = embed_sar(network.embed_sar, sar) if network.embed_sar is not None else None
    bands = len(network.mean)
    filled = fill(images[:, :bands], cloud) if network.base == "cloudy" else images[:, bands : 2 * bands]
    for level, stage in enumerate(network.optical):
        if level:
            stream = network.optical_down[level - 1](stream)
            skies.append(F.avg_pool2d(skies[-1], 2))
        stream = pass_stage(stage, stream, skies[level])
        if echo is not None:
            echo = network.sar_down[level - 1](echo) if level else echo
            echo = pass_stage(network.sar[level], echo, skies[level])
            if isinstance(network.fuse[level], SpatialFrequencyFusion):
                filled = network.filled_down[level - 1](filled) if level else network.embed_filled(filled)
                stream = stream + interact(network.fuse[level], stream, echo, filled)
            else:
                stream = fuse(network.fuse[level], stream, echo, skies[level])
        levels.append(stream)
    for level in range(len(levels) - 2, -1, -1):
        stream = mix_channels(network.join[level], torch.cat([network.up[level](stream), levels[level]], dim=1))
        stream = pass_stage(network.decode[level], stream, skies[level])
    return network.last(stream)


def fill(images: Tensor, cloud: Tensor) -> Tensor:
    return smooth_fill(images, 1 - cloud, torch.zeros(images.shape[1]))


def interact(layer: SpatialFrequencyFusion, optical: Tensor, sar: Tensor, filled: Tensor) -> Tensor:
    """SFIIN's `f_s`, `f_f`, `r = f_s + M f_f`, `conv(a [r ; f_f])`, the whole transform instead of half of it."""
    shown = mix_channels(layer.present, sar)
    near = layer.spatial(torch.cat([optical, shown], dim=1))
    far = mix_frequencies(layer.frequency, filled, shown)
    both = torch.cat([near + layer.interact.differ(near - far) * far, far], dim=1)
    flat = both.flatten(2)
    level = (flat.std(dim=2, correction=0) + flat.mean(dim=2))[:, :, None, None]
    first, _, second, _ = layer.interact.weigh
    weights = torch.sigmoid(mix_channels(second, F.leaky_relu(mix_channels(first, level), 0.1)))
    return layer.interact.merge(both * weights)


def mix_frequencies(layer: nn.Module, filled: Tensor, shown: Tensor) -> Tensor:
    """`| ifft(A exp(iP)) |`, `A = g_a([|U| ; G |V|])`, `P = arg U + G g_p([arg U ; arg V])`, on half of the frequencies of real images."""
    half = filled.shape[3] // 2 + 1
    spectra = [
        torch.fft.fft2(mix_channels(embed, image), norm="ortho")[..., :half]
        for embed, image in ((layer.embed, filled), (layer.embed_guide, shown))
    ]
    (ours, guide), (phase, other) = ([one(spectrum) for spectrum in spectra] for one in (torch.abs, torch.angle))
    share = torch.sigmoid(mix_channels(layer.gate, torch.log(1 + torch.cat([ours, guide], dim=1))))
    amplitude = mix_twice(layer.amplitude, torch.cat([ours, share * guide], dim=1))
    phase = phase + share * mix_twice(layer.phase, torch.cat([phase, other], dim=1))
    return mix_channels(layer.last, torch.fft.irfft2(amplitude * torch.exp(1j * phase), s=filled.shape[2:], norm="ortho").abs())


def mix_twice(layer: nn.Sequential, features: Tensor) -> Tensor:
    return mix_channels(layer[2], F.leaky_relu(mix_channels(layer[0], features), 0.1))


def mix_channels(layer: nn.Linear, features: Tensor) -> Tensor:
    return F.conv2d(features, layer.weight[:, :, None, None], layer.bias)


def normalise(layer: nn.LayerNorm, features: Tensor) -> Tensor:
    tokens = features.flatten(2).transpose(1, 2).contiguous()
    tokens = F.layer_norm(tokens, layer.normalized_shape, layer.weight, layer.bias, layer.eps)
    return tokens.transpose(1, 2).contiguous().reshape(features.shape)


def pass_stage(stage: TransformerStage, features: Tensor, cloud: Tensor) -> Tensor:
    for block in stage.blocks:
        features = pass_block(block, features, 1 - cloud)
    return features


def pass_block(block: TransformerBlock, features: Tensor, clear: Tensor) -> Tensor:
    if isinstance(block.attend, ParallelAttention):
        features = features + attend_both(block.attend, features, clear)
    elif isinstance(block.attend, WindowAttention):
        features = features + attend_windows(block.attend, normalise(block.norm, features), clear)
    else:
        features = features + attend_channels(block.attend, normalise(block.norm, features))
    return features + feed_forward(block.mix, normalise(block.norm_mix, features))


def attend_both(layer: ParallelAttention, features: Tensor, clear: Tensor) -> Tensor:
    """S2-Transformer: `W_r [WMSA(LN1 x) ; SpeMSA(LN2 x)]`."""
    near = attend_windows(layer.spatial, normalise(layer.norm_spatial, features), clear)
    among = attend_channels(layer.spectral, normalise(layer.norm_spectral, features))
    return mix_channels(layer.join, torch.cat([near, among], dim=1))


def embed_mask(layer: MaskEmbedding, clear: Tensor) -> Tensor:
    return torch.sigmoid(layer.near(layer.point(clear)))


def feed_forward(layer: nn.Module, features: Tensor) -> Tensor:
    return mix_channels(layer.contract, F.gelu(layer.near(F.gelu(mix_channels(layer.expand, features)))))


def attend_channels(layer: SpectralAttention, features: Tensor) -> Tensor:
    """MST: `softmax(s norm(K) norm(Q)^T) V` among the channels of each head, then the projection, then the positional branch."""
    batch, width, rows, columns = features.shape
    query, key, value = (part.contiguous() for part in mix_channels(layer.qkv, features).chunk(3, dim=1))
    query_heads, key_heads, value_heads = (
        part.reshape(batch, width // layer.head_dim, layer.head_dim, rows * columns) for part in (query, key, value)
    )
    query_heads, key_heads = F.normalize(query_heads, dim=3, eps=1e-6), F.normalize(key_heads, dim=3, eps=1e-6)
    weights = (key_heads @ query_heads.transpose(2, 3) * layer.temperature).softmax(dim=3)
    attended = mix_channels(layer.project, (weights @ value_heads).reshape(features.shape))
    return attended + layer.positional.second(F.gelu(layer.positional.first(value)))


def attend_windows(layer: WindowAttention, features: Tensor, clear: Tensor) -> Tensor:
    """Swin: roll, cut windows, `softmax(Q K^T / sqrt(d) + R + mask) V`, put windows back, roll back."""
    batch, width, rows, columns = features.shape
    side, shift, depth = layer.window_px, layer.shift, layer.head_dim
    parts = mix_channels(layer.qkv, features).chunk(3, dim=1)
    if any(layer.masked):
        factors = embed_mask(layer.embed_mask, clear)
        parts = tuple(part * factors if masked else part for part, masked in zip(parts, layer.masked, strict=True))
    if shift:
        parts = tuple(torch.roll(part, (-shift, -shift), dims=(2, 3)) for part in parts)
    query, key, value = (
        cut_windows(part, side).reshape(-1, width // depth, depth, side * side).transpose(2, 3).contiguous() for part in parts
    )
    logits = query @ key.transpose(2, 3) / math.sqrt(depth) + bias_of(layer)
    if shift:
        apart = part_windows((rows, columns), side, shift).to(features.device).repeat(batch, 1, 1)
        logits = logits.masked_fill(apart[:, None], float("-inf"))
    attended = (logits.softmax(dim=3) @ value).transpose(2, 3).reshape(-1, width, side, side)
    put_back = join_windows(attended, batch, rows, columns)
    return mix_channels(layer.project, torch.roll(put_back, (shift, shift), dims=(2, 3)) if shift else put_back)


def cut_windows(features: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B * windows, C, M, M), a copy."""
    batch, width, rows, columns = features.shape
    cut = features.reshape(batch, width, rows // side, side, columns // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, width, side, side).contiguous()


def join_windows(windows: Tensor, batch: int, rows: int, columns: int) -> Tensor:
    """(B * windows, C, M, M) -> (B, C, H, W), a copy."""
    width, side = windows.shape[1:3]
    grid = windows.reshape(batch, rows // side, columns // side, width, side, side)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(batch, width, rows, columns).contiguous()


def bias_of(layer: WindowAttention) -> Tensor:
    """The bias of each pair of pixels, from how far apart they lie: (heads, M*M, M*M)."""
    side = layer.window_px
    place = torch.arange(side * side, device=layer.bias.device)
    row, column = place // side, place % side
    down, across = row[:, None] - row[None, :] + side - 1, column[:, None] - column[None, :] + side - 1
    return layer.bias[:, down * (2 * side - 1) + across]


def part_windows(size: tuple[int, int], side: int, shift: int) -> Tensor:
    """True between pixels that the roll brought together from opposite borders: (windows, M*M, M*M)."""
    regions = torch.zeros(1, 1, *size)
    regions[:, :, -shift:] += 1
    regions[:, :, :, -shift:] += 2
    label = cut_windows(regions, side).flatten(1)
    return label[:, :, None] != label[:, None, :]


def embed_sar(layer: nn.Module, sar: Tensor) -> Tensor:
    if not isinstance(layer, MultiscaleSar):
        return layer(sar)
    embedded = layer.embed(sar)
    edged = embedded + find_edges(layer.edges, embedded)
    point = mix_channels(layer.point, edged)
    return embedded + point + torch.sigmoid(layer.gate(edged)) + layer.wide(point)


def find_edges(layer: SobelEdges, features: Tensor) -> Tensor:
    """`sqrt((a Kx * B)^2 + (a Ky * B)^2 + eps)`, the factor inside the kernel."""
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=features.device) / 8
    padded = F.pad(features, (1, 1, 1, 1), mode="replicate")
    width = features.shape[1]
    factor = layer.alpha.expand(width).reshape(width, 1, 1, 1)
    gradients = [F.conv2d(padded, factor * kernel, groups=width) for kernel in (sobel, sobel.T)]
    return torch.sqrt(gradients[0] ** 2 + gradients[1] ** 2 + 1e-6)


def fuse(layer: nn.Module, optical: Tensor, sar: Tensor, cloud: Tensor) -> Tensor:
    if isinstance(layer, ConcatFusion):
        return optical + layer.merge(mix_channels(layer.mix, torch.cat([optical, sar], dim=1)))
    beta_optical, beta_sar = weigh_streams(layer, optical, sar, cloud)
    if isinstance(layer, PixelFusion):
        return optical + layer.merge(mix_channels(layer.mix, torch.cat([2 * beta_optical * optical, 2 * beta_sar * sar], dim=1)))
    return optical + layer.merge(beta_optical * optical + beta_sar * sar)


def weigh_streams(layer: FusionGate, optical: Tensor, sar: Tensor, cloud: Tensor) -> tuple[Tensor, Tensor]:
    """The betas, a softmax over the two streams."""
    means = torch.cat([F.adaptive_avg_pool2d(optical, 1), F.adaptive_avg_pool2d(sar, 1)], dim=1).flatten(1)
    logits = layer.channel(means).reshape(len(means), 2, -1, 1, 1)
    if isinstance(layer, PixelFusion):  # what a pixel says for optical speaks against SAR
        pixel = mix_channels(layer.pixel, torch.cat([optical, sar, cloud], dim=1)) / 2
        logits = logits + torch.stack([pixel, -pixel], dim=1)
    betas = logits.softmax(dim=1)
    return betas[:, 0], betas[:, 1]
