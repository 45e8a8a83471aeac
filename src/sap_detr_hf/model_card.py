"""Model cards, generated from a model's configuration."""

from huggingface_hub import ModelCard, ModelCardData

from .configuration_sap_detr import PUBLISHED_VARIANTS, SapDetrConfig

# COCO val2017, 50 epochs, as published by the authors (paper, table 1).
REPORTED_BY_AUTHORS: dict[str, dict[str, float]] = {
    "r50": {"AP": 43.1, "AP small": 22.9, "AP medium": 47.1, "AP large": 62.1},
    "r50-dc5": {"AP": 46.0, "AP small": 26.4, "AP medium": 50.2, "AP large": 62.6},
    "r101": {"AP": 44.4, "AP small": 24.1, "AP medium": 48.7, "AP large": 63.1},
    "r101-dc5": {"AP": 46.9, "AP small": 27.9, "AP medium": 51.3, "AP large": 64.3},
}

CITATION = """@inproceedings{liu2023sapdetr,
  title={SAP-DETR: Bridging the Gap Between Salient Points and Queries-Based Transformer Detector for Fast Model
         Convergency},
  author={Liu, Yang and Zhang, Yao and Wang, Yixin and Zhang, Yang and Tian, Jiang and Shi, Zhongchao and Fan, Jianping
          and He, Zhiqiang},
  booktitle={CVPR},
  year={2023}
}"""


def variant_of(config: SapDetrConfig) -> str | None:
    """The published variant that a configuration is, judged by its backbone."""
    backbone = config.backbone_config
    if getattr(backbone, "model_type", None) != "resnet":
        return None
    for name, fields in PUBLISHED_VARIANTS.items():
        published = SapDetrConfig(**fields)
        same_depths = getattr(published.backbone_config, "depths", None) == getattr(backbone, "depths", None)
        if same_depths and published.dilation == config.dilation:
            return name
    return None


def card_of_converted(config: SapDetrConfig) -> str:
    """The text of a `README.md` for a converted released checkpoint; its AP is marked as the authors' own."""
    variant = variant_of(config)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="object-detection",
        license="apache-2.0",
        tags=["object-detection", "vision", "detr", "sap-detr"],
        datasets=["detection-datasets/coco"],
    )
    figures = ""
    if variant is not None and config.num_labels == 91:
        cells = REPORTED_BY_AUTHORS[variant]
        figures = (
            "COCO val2017, 50 epochs, *reported by the authors, not measured on this conversion*:\n\n"
            f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n| {' | '.join(str(v) for v in cells.values())} |\n"
        )
    rows, columns = config.query_grid or (0, 0)
    slots = " (the slot is the COCO category id)" if config.num_labels == 91 else ""
    text = f"""---
{data.to_yaml()}
---

# SAP-DETR {variant or ""}

Converted from a checkpoint of the [released code](https://github.com/liuyang-ict/SAP-DETR) (Apache-2.0) of
[SAP-DETR](https://arxiv.org/abs/2211.02006) by `sap_detr_hf`. {config.num_queries} queries on a {rows} x {columns}
grid of reference points, {config.num_labels} class slots{slots}.

{figures}
## Use

```python
import sap_detr_hf  # registers the model
from transformers import pipeline

detector = pipeline("object-detection", model="PATH")
print(detector("photo.jpg"))
```

## Limits

* In a padded batch an image's result depends on its neighbours, as in training; `valid_region=True` in the
  configuration avoids this.
* Images are resized to a shortest side of 800 and a longest of at most 1333; small objects are the weak side.

## Citation

```bibtex
{CITATION}
```
"""
    ModelCard(text)  # raises where the metadata cannot be read back
    return text
