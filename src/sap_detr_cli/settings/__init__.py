"""One module per verb: its settings; the module's docstring is the description in `sap-detr VERB --help`."""
