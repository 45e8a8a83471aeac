"""The installed command `sap-detr` and the settings of its verbs; imports neither torch nor transformers."""
