import torch
from tiny_model import tiny_inputs, tiny_model

from benchmarks.released_form import released_form


def test_released_form_gives_the_same_outputs():
    model = tiny_model()
    expected = model(*tiny_inputs())
    found = released_form(model)(*tiny_inputs())
    for name in ("logits", "pred_boxes", "pred_points"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    key = model.model.decoder.layers[1].cross_attn
    assert type(key).__name__ == "ThreePartCrossAttention"
