"""A self-supervised encoder for the planted benchmark, whose features depend on no label."""

import torch
from torch import Tensor, nn

from dp4tl_ffcv import BetonIndex, build_model, evaluation_loader
from dp4tl_ffcv.utils import Classifier

OUTPUTS = 64  # size of the projection that views are compared in
EPOCHS, BATCH_SIZE, LR, TEMPERATURE = 10, 256, 2e-3, 0.2


def train_encoder(index: BetonIndex, arch: str, resolution: int) -> Classifier:
    """Train a network to recognise an image in another crop and other colours.

    Each image gives two views; the other images of the batch are the negatives (SimCLR, arXiv
    2002.05709).
    """
    loader = evaluation_loader(index, batch_size=512, resolution=resolution, crop_ratio=1.0)
    images = torch.cat([batch.clone() for batch, _ in loader]).float()
    torch.manual_seed(0)
    model = build_model(arch, OUTPUTS).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    steps_per_epoch = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps_per_epoch)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH_SIZE)[:steps_per_epoch]:
            views = torch.cat([view(images[rows]), view(images[rows])])
            loss = contrastive_loss(model(views), TEMPERATURE)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def contrastive_loss(outputs: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding each view's partner, rows i and i + B of `(2B, D)`."""
    outputs = nn.functional.normalize(outputs, dim=1)
    similarities = outputs @ outputs.T / temperature
    similarities.fill_diagonal_(-torch.inf)
    half = len(outputs) // 2
    partners = torch.arange(2 * half).roll(half)
    return nn.functional.cross_entropy(similarities, partners)


def view(images: Tensor) -> Tensor:
    """Crop images `(B, 3, H, W)` at random, and change the contrast and level of each channel."""
    count = len(images)
    scale = torch.empty(count).uniform_(0.75, 1.0)
    shift = (1 - scale[:, None]) * torch.empty(count, 2).uniform_(-1, 1)
    turn = torch.zeros(count, 2, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = scale
    turn[:, :, 2] = shift
    grid = nn.functional.affine_grid(turn, list(images.shape), align_corners=False)
    cropped = nn.functional.grid_sample(images, grid, align_corners=False, padding_mode="border")
    middle = cropped.mean(dim=(2, 3), keepdim=True)
    gain = torch.empty(count, 3, 1, 1).uniform_(0.6, 1.4)
    level = torch.empty(count, 3, 1, 1).uniform_(-30, 30)
    return (middle + gain * (cropped - middle) + level).clamp(0, 255)
