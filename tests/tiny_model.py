"""A SAP-DETR small enough to run in milliseconds, with inputs and labels for it."""

import torch

from sap_detr_hf import SapDetrConfig, SapDetrForObjectDetection

# Train it on images of at most 160 pixels a side: oneDNN (torch 2.14) writes beyond its memory in the weights' gradient
# of a 1 x 1 convolution with stride 2 on fewer than 16 channels and maps of 48 x 48 or more.
TINY_BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 2],
    "layer_type": "basic",
    "out_features": ["stage4"],
}


def tiny_config(**overrides) -> SapDetrConfig:
    fields = {
        "backbone_config": TINY_BACKBONE,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "query_grid": [4, 5],
        "num_labels": 6,
    }
    return SapDetrConfig(**{**fields, **overrides})


def tiny_model(seed: int = 0, **overrides) -> SapDetrForObjectDetection:
    """Random weights everywhere: also in the layers that start at zero, so that nothing is hidden."""
    torch.manual_seed(seed)
    model = SapDetrForObjectDetection(tiny_config(**overrides))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "norm" not in name:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tiny_inputs(sizes=((96, 128), (64, 96)), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """pixel_values (B, 3, H, W) and pixel_mask (B, H, W) of images of the given (height, width)."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(size[i] for size in sizes) for i in (0, 1))
    pixels = torch.zeros(len(sizes), 3, height, width)
    mask = torch.zeros(len(sizes), height, width, dtype=torch.long)
    for i, (h, w) in enumerate(sizes):
        pixels[i, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[i, :h, :w] = 1
    return pixels, mask


def tiny_labels(counts=(3, 1), num_labels: int = 6, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    labels = []
    for i, n in enumerate(counts):
        size = 0.1 + 0.4 * torch.rand(n, 2, generator=generator)
        center = size / 2 + torch.rand(n, 2, generator=generator) * (1 - size)
        classes = torch.randint(0, num_labels, (n,), generator=generator)
        labels.append(
            {"image_id": torch.tensor([100 + i]), "class_labels": classes, "boxes": torch.cat([center, size], 1)}
        )
    return labels
