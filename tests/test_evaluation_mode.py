import pytest
from torch import nn

from sap_detr_hf.evaluation_mode import evaluation_mode


def fail_in_evaluation_mode(model):
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError("out of memory")


def test_every_module_returns_to_its_mode():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())).train()
    model[1][0].eval()  # frozen
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="out of memory"):
        fail_in_evaluation_mode(model)
    assert [module.training for module in model.modules()] == before
