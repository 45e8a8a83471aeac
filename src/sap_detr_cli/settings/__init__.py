"""One module a verb: its settings, and in the module's docstring the text of `sap-detr VERB --help`."""
