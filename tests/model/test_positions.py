import torch

from sap_detr_hf.model.positions import valid_tokens


def test_valid_tokens_are_those_of_nearest_interpolation():
    """In all sizes, also where the valid image ends at a token's border."""
    for pixels in range(33, 700):
        for stride in (8, 16, 32, 64):
            tokens = -(-pixels // stride)
            borders = {index * pixels // tokens for index in range(1, tokens + 1)}
            for valid in sorted({*borders, min(borders) + 1, pixels - 1})[:6]:
                mask = torch.zeros(1, pixels, 1, dtype=torch.long)
                mask[:, :valid] = 1
                padding = torch.nn.functional.interpolate((mask == 0)[:, None].float(), size=(tokens, 1))
                assert torch.equal(valid_tokens(mask, torch.Size((tokens, 1))), padding == 0), (pixels, stride, valid)
