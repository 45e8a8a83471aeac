import pytest
import torch
from tiny_model import tiny_inputs, tiny_labels, tiny_model

from benchmarks.gaussian_forms import GAUSSIAN_FORMS, gaussian_form

PADDED, FULL = ((256, 320), (192, 320)), ((256, 320), (256, 320))


def form_of(form: str | None, **overrides):
    model = tiny_model(**overrides)
    return model if form is None else gaussian_form(model, form)


OUTPUTS = ("logits", "pred_boxes", "pred_points", "pred_objectness")


@torch.no_grad()
@pytest.mark.parametrize("sizes", [PADDED, FULL])
@pytest.mark.parametrize("valid_region", [False, True])
@pytest.mark.parametrize("form", GAUSSIAN_FORMS)
def test_outputs_equal_the_models(form, sizes, valid_region):
    inputs = tiny_inputs(sizes)
    expected = tiny_model(valid_region=valid_region)(*inputs)
    found = gaussian_form(tiny_model(valid_region=valid_region), form)(*inputs)
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)


def test_channels_learn_the_same():
    gradients = []
    for model in (tiny_model(), gaussian_form(tiny_model(), "channels")):
        model(*tiny_inputs(), labels=tiny_labels()).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def attention_and_gradients(form: str | None, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output of a cross-attention over 50 x 67 tokens, and gradients of the Gaussians' centres and inverse widths."""
    torch.manual_seed(0)
    model = tiny_model() if form is None else gaussian_form(tiny_model(), form)
    layer = model.model.decoder.layers[1]
    gaussian, attention = layer.gaussian, layer.cross_attn
    gaussian.proj, attention.out_proj = torch.nn.Identity(), torch.nn.Identity()
    map_size = height, width = 50, 67
    centre = (torch.rand(2, 30, 4, 2) * torch.tensor([width, height])).requires_grad_()  # (B, N, H, 2)
    inverse_width = (0.2 + torch.rand(2, 30, 4, 2)).requires_grad_()
    gaussian.place = lambda *_: (centre, inverse_width)
    query, key, value = (
        torch.randn(2, 4, length, channels).bfloat16().to(dtype)  # the same in every precision
        for length, channels in ((30, 16), (height * width, 16), (height * width, 8))
    )
    bias = gaussian(query, None, None, None, None, map_size)
    output, _ = attention.attend(query, key, value, position_bias=bias)
    (output.float() * torch.randn(output.shape)).sum().backward()
    return [output.detach().float(), centre.grad, inverse_width.grad]


def test_channels_in_half_precision_predict_as_well_and_learn_worse():
    """Why the model keeps its bias for training: measured 0.2 %, 3 % and 17 % here, against 0.2 %, 0.4 % and 0.4 %."""
    exact = attention_and_gradients(None, torch.float32)
    errors = {}
    for form in (None, "channels"):
        found = attention_and_gradients(form, torch.bfloat16)
        errors[form] = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
    assert max(errors[None]) < 0.01
    assert errors["channels"][0] < 1.2 * errors[None][0]
    assert errors["channels"][2] > 0.05


@torch.no_grad()
@pytest.mark.parametrize("form", GAUSSIAN_FORMS)
def test_padding_loses_against_any_token_of_the_image(form):
    """Queries inside the padding see the image's tokens, however small these tokens' exponents are."""
    outputs = []
    for each in (None, form):
        model = tiny_model()
        for layer in model.model.decoder.layers:
            layer.gaussian.proj.layers[-1].bias[8:] += 16  # inverse widths x, y of four heads
        model = model if each is None else gaussian_form(model, each)
        outputs.append(model(*tiny_inputs(((640, 640), (64, 64)))).logits)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-2)
