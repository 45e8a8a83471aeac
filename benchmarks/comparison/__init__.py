"""SAP-DETR, its variants and transformers' detectors trained alike on small data: models, data sets, runs, report."""
